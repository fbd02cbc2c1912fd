"""What is sound: every format the same, and files that lie, break or unfold."""

import asyncio
import io
import os
import signal
import subprocess

import numpy as np
import pytest
import soundfile

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl.demo_site import encode
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.probe import probe
from speechgpt2.data.crawl.probe_process import ProbeProcess


def look(tmp_path, body: bytes, max_hours: float = 1.0):
    path = tmp_path / "body"
    path.write_bytes(body)
    return probe(path, max_hours)


@pytest.mark.parametrize("format, ending", [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")])
def test_formats_that_libsndfile_reads(tmp_path, tone, format, ending):
    probed = look(tmp_path, encode(tone(1), format))
    assert (probed.ending, probed.sample_rate, probed.channels, probed.samples) == (ending, 24_000, 1, 12_000)


def test_fingerprint_does_not_depend_on_the_container(tmp_path, tone):
    same = {look(tmp_path, encode(tone(1), format)).fingerprint for format in ("WAV", "FLAC")}
    assert len(same) == 1
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([tone(1)] * 2, 1), 24_000, format="WAV")
    for other in (encode(tone(2), "WAV"), encode(tone(1)[:-1], "WAV"), stereo.getvalue()):
        assert look(tmp_path, other).fingerprint not in same


@needs.tool("ffmpeg")
@pytest.mark.parametrize("ending", ["m4a", "aac", "webm"])
def test_formats_that_only_ffmpeg_reads(tmp_path, wav, ending):
    (tmp_path / "a.wav").write_bytes(wav(1))
    path = tmp_path / f"a.{ending}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", path], check=True)
    probed = probe(path.rename(tmp_path / "body"), 1.0)
    assert probed.ending == ending and probed.seconds == pytest.approx(0.5, abs=0.1)
    body = (tmp_path / "body").read_bytes()
    if ending == "m4a":
        with pytest.raises(ItemRejected, match="corrupt"):
            look(tmp_path, body[: len(body) // 2])


def floats(values) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(values, np.float32), 24_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def lying_flac(body: bytes) -> bytes:
    """A FLAC file whose header promises 2^36 − 1 samples."""
    header = bytearray(body)
    header[21] |= 0x0F
    header[22:26] = b"\xff" * 4
    return bytes(header)


def test_broken_files_are_rejected(tmp_path, tone):
    flac, mp3 = encode(tone(1), "FLAC"), encode(np.tile(tone(1), 4), "MP3")
    wrong_rate = bytearray(encode(tone(1), "WAV"))
    wrong_rate[24:28] = (1).to_bytes(4, "little")
    cases = [
        (b"", "not-audio"),
        (b"<html>" * 100, "not-audio"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "not-audio"),
        (os.urandom(4096), "not-audio"),
        (flac[: len(flac) // 2], "corrupt"),
        (mp3[: len(mp3) // 2], "corrupt"),
        (lying_flac(flac), "corrupt"),
        (bytes(wrong_rate), "corrupt"),
        (floats([0.1, np.nan, 0.2]), "corrupt"),
        (floats(np.zeros(5000)), "silent"),
        (floats(np.full(5000, 1e-5)), "silent"),
        (encode(np.zeros(0, np.float32), "WAV"), "silent"),
    ]
    for number, (body, reason) in enumerate(cases):
        with pytest.raises(ItemRejected) as rejection:
            look(tmp_path, body)
        assert rejection.value.reason == reason, f"case {number}: {rejection.value}"


def test_decompression_bomb_is_rejected(tmp_path):
    bomb = encode(np.zeros(24_000 * 300, np.float32), "FLAC")
    assert len(bomb) < 24_000 * 300 / 50
    with pytest.raises(ItemRejected) as rejection:
        look(tmp_path, bomb, max_hours=60 / 3600)
    assert rejection.value.reason == "endless"


def test_crashed_probe_process_is_replaced(tmp_path, wav):
    (tmp_path / "body").write_bytes(wav(1))

    async def scenario():
        decoder = ProbeProcess()
        first = await decoder.probe(tmp_path / "body", 1.0)
        os.kill(decoder._process.pid, signal.SIGSTOP)  # it hangs …
        asked = asyncio.create_task(decoder.probe(tmp_path / "body", 1.0))
        await asyncio.sleep(0.1)
        os.kill(decoder._process.pid, signal.SIGKILL)  # … and crashes
        with pytest.raises(ItemRejected, match="crashed"):
            await asked
        again = await decoder.probe(tmp_path / "body", 1.0)
        os.kill(decoder._process.pid, signal.SIGSTOP)
        decoder._timeout = 0.1
        with pytest.raises(ItemRejected, match="did not end"):
            await decoder.probe(tmp_path / "body", 1.0)
        await decoder.close()
        return first == again

    assert asyncio.run(scenario())
