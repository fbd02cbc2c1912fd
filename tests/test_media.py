"""Decoding of any audio file: formats of FFmpeg, truncated and damaged files, files that are not what they claim."""

import io
import sys

import numpy as np
import pytest
import soundfile

from speechgpt2 import audio
from speechgpt2.audio import AudioReader
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE
from tests import media, needs

TONE = (0.5 * np.sin(np.arange(SAMPLE_RATE) * 0.1)).astype(np.float32)


@needs.extra("media", "av")
@pytest.mark.parametrize(
    ("container", "codec"),
    [("ipod", "aac"), ("adts", "aac"), ("webm", "libopus"), ("matroska", "flac"), ("mp4", "alac"), ("ac3", "ac3")],
)
def test_formats_of_ffmpeg(tmp_path, container, codec):
    path = tmp_path / "speech.wav"  # the content counts, not the name
    media.write_with_ffmpeg(str(path) if container == "mp4" else path.open("wb"), TONE, container, codec)
    for source in (path, path.open("rb")):
        pcm = np.concatenate(list(AudioReader(source)))
        assert abs(len(pcm) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE
        assert 0.3 < np.sqrt(np.mean(pcm[4_000:-4_000] ** 2)) < 0.4


@needs.extra("media", "av")
def test_eight_channels_of_ffmpeg(tmp_path):
    """PyAV ended the process at eight channels, each in a plane of its own."""
    path = tmp_path / "film.mkv"
    media.write_with_ffmpeg(str(path), TONE, "matroska", "pcm_f32le", layout="7.1")
    pcm = audio.load(path)
    assert abs(len(pcm) - SAMPLE_RATE) < 100 and np.corrcoef(pcm[:23_000], TONE[:23_000])[0, 1] > 0.99


@needs.extra("media", "av")
def test_change_of_channels_is_one_line(tmp_path):
    """Two streams of AAC, one behind the other, as a radio station sends them."""
    path = tmp_path / "radio.aac"
    for layout in ("mono", "stereo"):
        with path.open("ab") as file:
            media.write_with_ffmpeg(file, TONE, "adts", "aac", layout=layout)
    with pytest.raises(UserError, match=r"radio\.aac: changes its channels"):
        audio.load(path)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "speech.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(UserError, match=r"pip install 'speechgpt2\[media\]'"):
        audio.load(path)


@needs.extra("media", "av")
def test_codec_that_nothing_decodes_is_one_line(tmp_path):
    """FFmpeg opens a WAV file whose format nobody knows, with a stream that has no decoder."""
    path = tmp_path / "speech.wav"
    audio.save(path, TONE)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x99\x99"  # the format tag
    path.write_bytes(data)
    with pytest.raises(UserError, match="no decoder for its codec"):
        audio.load(path)


@needs.extra("media", "av")
@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{target}\n",
        "ffconcat version 1.0\nfile {target}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
    ],
)
def test_playlists_open_no_other_file(tmp_path, content):
    """A playlist could name a file or an address of the server."""
    audio.save(tmp_path / "secret.wav", TONE)
    for name in ("list.m3u8", "list.txt", "list.mpd"):
        path = tmp_path / name
        path.write_text(content.format(target=tmp_path / "secret.wav"))
        with pytest.raises(UserError, match="cannot be read as audio"):
            audio.load(path)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", pytest.param("ipod", marks=needs.extra("media", "av"))])
def test_truncated_file_is_read_with_a_warning(tmp_path, format):
    whole = io.BytesIO()
    noise = (0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
    if format == "ipod":
        media.write_with_ffmpeg(str(tmp_path / "whole"), noise, "ipod", "aac", options={"movflags": "faststart"})
    else:
        soundfile.write(whole, noise, SAMPLE_RATE, format=format)
    path = tmp_path / "cut"
    data = whole.getvalue() or (tmp_path / "whole").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.warns(audio.AudioWarning, match=r"cut is truncated: \d\.\d s of 3\.0 s"):
        pcm = audio.load(path)
    assert 0.5 * SAMPLE_RATE < len(pcm) < 2 * SAMPLE_RATE


def test_streamed_wav_without_a_length_is_whole(tmp_path, recwarn):
    path = tmp_path / "streamed.wav"
    audio.save(path, TONE)
    data = bytearray(path.read_bytes())
    for at in (4, 40):
        data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(audio.load(path)) == len(TONE) and not recwarn


def test_long_recording_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "long.flac"
    audio.save(path, np.zeros(20 * SAMPLE_RATE, np.float32))
    reader = AudioReader(path, max_seconds=2.0)
    with pytest.raises(UserError, match=r"long\.flac: is longer than 2 s"):
        list(reader)
    assert (reader.seconds, reader.promised_seconds) == (0, 20)


@needs.condition(sys.platform == "linux", "only Linux has names that are no text")
@pytest.mark.parametrize("format", ["wav", pytest.param("m4a", marks=needs.extra("media", "av"))])
def test_name_that_is_not_utf8(tmp_path, format):
    audio.save(tmp_path / "speech.wav", TONE)
    if format == "m4a":
        media.write_with_ffmpeg(str(tmp_path / "speech.m4a"), TONE, "ipod", "aac")
    path = (tmp_path / f"speech.{format}").rename(tmp_path / f"\udcff.{format}")
    assert abs(len(audio.load(path)) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE


@needs.condition(sys.platform == "linux", "limits the size of files by Linux' rlimit")
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_full_disk_keeps_the_old_file(tmp_path, suffix):
    """libsndfile does not report that a FLAC file could not be written."""
    import resource

    path = tmp_path / f"speech{suffix}"
    audio.save(path, TONE)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).uniform(-1, 1, 4 * SAMPLE_RATE).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            audio.save(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_audio_or_one_line(seed):
    """Flipped bytes and cuts, in the header above all."""
    draw = np.random.default_rng(seed)
    file = io.BytesIO()
    soundfile.write(file, TONE[:6_000], SAMPLE_RATE, format=["WAV", "FLAC", "OGG", "MP3"][seed % 4])
    data = np.frombuffer(file.getvalue(), np.uint8).copy()
    places = draw.integers(0, [64, len(data)][seed // 4 % 2], size=6)
    data[places] = draw.integers(0, 256, size=6)
    try:
        pcm = np.concatenate(list(AudioReader(io.BytesIO(data.tobytes()), "damaged", max_seconds=60.0)))
        assert pcm.dtype == np.float32 and np.isfinite(pcm).all()
    except UserError as error:
        assert "damaged: " in str(error) and "\n" not in str(error)
