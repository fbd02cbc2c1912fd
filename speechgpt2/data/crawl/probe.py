"""Is it sound, how long, and which sound: a file is decoded once, block by block, in bounded memory.

What libsndfile cannot read (AAC, Opus in Matroska …) goes through ffmpeg where that is installed. A file's name and its
declared type are not believed; a file that decodes to more than the limit, however small it is, is given up.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from speechgpt2.data.crawl.verdicts import Rejected

BLOCK = 1 << 16  # sample frames decoded at a time
RATES = range(4_000, 384_001)  # Hz; anything else is a damaged header
MAX_CHANNELS = 16
WHOLE = 0.98  # of the samples that the header promises; formats without a table of contents estimate
QUIETEST = 4  # of 32,768: a file that never exceeds it holds no sound
FFMPEG_RATE = 48_000  # what ffmpeg is asked for: the highest rate of the formats that need it
_ENDINGS = {"WAVEX": "wav", "RF64": "wav"}  # by libsndfile's name of the format, where that is no ending


@dataclass(frozen=True)
class Sound:
    """What a file holds.

    format       the container as libsndfile or ffmpeg names it
    ending       what the file should be named, from its content
    fingerprint  hash of the decoded 16-bit samples, equal for equal sound in any lossless wrapping
    """

    format: str
    ending: str
    sample_rate: int
    channels: int
    samples: int
    fingerprint: str

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def probe(path: Path, max_hours: float) -> Sound:
    """Decode the whole file. Errors: `Rejected` ("not-audio", "corrupt", "too-long", "silent")."""
    try:
        with soundfile.SoundFile(path) as file:
            return _read(file, max_hours)
    except soundfile.SoundFileError:
        pass  # perhaps a container that libsndfile does not know
    container = _demuxer_of(path)
    if container is None or shutil.which("ffmpeg") is None:
        raise Rejected("not-audio", "is in no format that can be decoded")
    return _probe_with_ffmpeg(path, *container, max_hours)


def _read(file: soundfile.SoundFile, max_hours: float) -> Sound:
    if file.samplerate not in RATES or not 1 <= file.channels <= MAX_CHANNELS:
        raise Rejected("corrupt", f"{file.samplerate} Hz and {file.channels} channels are not believable")
    try:
        samples, fingerprint = _digest(_blocks(file), file.samplerate, file.channels, max_hours)
    except soundfile.SoundFileError as error:
        raise Rejected("corrupt", f"decoding broke off ({error})") from None
    if samples < WHOLE * file.frames:
        raise Rejected("corrupt", f"its header promises {file.frames} samples, it holds {samples}")
    return Sound(
        file.format,
        _ENDINGS.get(file.format, file.format.lower()),
        file.samplerate,
        file.channels,
        samples,
        fingerprint,
    )


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """To the end of the data, not to the end that the header promises."""
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        yield block


def _digest(blocks: Iterator[np.ndarray], rate: int, channels: int, max_hours: float) -> tuple[int, str]:
    """Number of sample frames and the fingerprint of `blocks`, each float32 [N, channels]."""
    digest, samples, peak = hashlib.sha256(f"{rate} {channels}".encode()), 0, 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise Rejected("corrupt", "holds samples that are no numbers")
        coded = np.clip(np.round(block * 32768.0), -32768, 32767).astype("<i2")
        digest.update(coded.tobytes())
        peak = max(peak, int(np.abs(coded.astype(np.int32)).max(initial=0)))
        samples += len(block)
        if samples > max_hours * 3600 * rate:
            raise Rejected("too-long", f"decodes to more than {max_hours:g} hours")
    if not samples or peak <= QUIETEST:
        raise Rejected("silent", f"holds {samples / rate:.1f} s of nothing")
    return samples, digest.hexdigest()


def _demuxer_of(path: Path) -> tuple[str, str] | None:
    """ffmpeg's demuxer and the file's ending, by the first bytes; None for what is no container of sound.

    ffmpeg is told the format: left to guess, it would follow the paths and URLs in a playlist.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return "mov", "m4a"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska", "webm"
    if head[:4] == b"OggS":
        return "ogg", "ogg"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac", "aac"
    return None


def _probe_with_ffmpeg(path: Path, demuxer: str, ending: str, max_hours: float) -> Sound:
    command = [
        "ffmpeg", "-v", "error", "-nostdin", "-xerror", "-f", demuxer, "-i", str(path.resolve()),
        "-map", "0:a:0", "-vn", "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "s16le", "pipe:1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints) as process:
            assert process.stdout is not None
            try:
                samples, fingerprint = _digest(_piped(process.stdout), FFMPEG_RATE, 1, max_hours)
            except Rejected as refusal:
                process.kill()
                verdict: Rejected | None = refusal
            else:
                verdict = None
        complaints.seek(0)
        said = complaints.read(300).decode("utf-8", "replace").strip().splitlines()
    if said and (verdict is None or verdict.reason == "silent"):
        raise Rejected("corrupt", f"ffmpeg says: {said[0]}")
    if verdict is not None:
        raise verdict
    return Sound(demuxer.upper(), ending, FFMPEG_RATE, 1, samples, fingerprint)


def _piped(pipe: IO[bytes]) -> Iterator[np.ndarray]:
    """float32 [N, 1] from a pipe of 16-bit samples."""
    while data := pipe.read(2 * BLOCK):
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32)[:, None] / 32768.0
