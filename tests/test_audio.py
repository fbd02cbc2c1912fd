"""Audio files, resampling, 16-bit PCM and blocks."""

import contextlib
import struct
import warnings

import numpy as np
import pytest
import soundfile

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def loudest_hertz(pcm: np.ndarray, rate: int = SAMPLE_RATE) -> float:
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return float(np.fft.rfftfreq(len(pcm), 1 / rate)[spectrum.argmax()])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize(
    ("ending", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", None)],
)
def test_load_gives_mono_at_24_khz(tmp_path, ending, subtype, rate, channels):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, np.stack([tone(rate)] * channels, axis=1), rate, subtype=subtype)
    pcm = audio.load(path)
    assert pcm.dtype == np.float32 and pcm.ndim == 1
    assert abs(len(pcm) - SAMPLE_RATE // 2) < 0.1 * SAMPLE_RATE  # lossy coders pad
    assert abs(loudest_hertz(pcm) - 440) < 4
    assert 0.4 < np.abs(pcm[2_000:-2_000]).max() < 0.6


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1), SAMPLE_RATE, subtype="FLOAT")
    assert np.allclose(audio.load(path), 0.125)


def header(rate: int, samples: int = 100) -> bytes:
    """A 16-bit mono WAV file of silence that claims to be at `rate` Hz."""
    data = bytes(2 * samples)
    fields = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2 & 0xFFFFFFFF, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + fields
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as audio"),
        (b"this is no sound" * 100, "cannot be read as audio"),
        (header(SAMPLE_RATE)[:20], "cannot be read as audio"),
        (header(SAMPLE_RATE, samples=0), "holds no audio"),
        (header(0), "cannot be read as audio"),
        (header(1), "sampling rate of 1 Hz"),
        (header(2**31 - 1), "sampling rate"),
        (header(192_000, samples=1), "holds no audio"),  # less than one sample at 24 kHz
    ],
)
def test_files_without_audio_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        audio.load(path)
    assert "bad.wav" in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        audio.load(tmp_path / "absent.wav")
    with pytest.raises(UserError, match="a folder"):
        audio.load(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_must_be_finite(tmp_path, value):
    path, samples = tmp_path / "nan.wav", tone(SAMPLE_RATE)
    samples[100] = value
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(UserError, match="not numbers"):
        audio.load(path)


def test_random_bytes_raise_only_user_errors(tmp_path):
    """A good file with random bytes changed either loads as finite audio or raises UserError."""
    good, random = tmp_path / "good.flac", np.random.default_rng(0)
    soundfile.write(good, tone(16_000, 0.2), 16_000)
    for _ in range(50):
        content = bytearray(good.read_bytes())
        for place in random.integers(0, len(content), 4):
            content[place] = random.integers(256)
        bad = tmp_path / "bad.flac"
        bad.write_bytes(content)
        with contextlib.suppress(UserError):
            assert np.isfinite(audio.load(bad)).all()


@pytest.mark.parametrize("ending", ["wav", "flac", "WAV"])
def test_saved_audio_loads_equal(tmp_path, ending):
    path, pcm = tmp_path / f"out.{ending}", tone(SAMPLE_RATE)
    audio.save(path, pcm)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    assert np.abs(audio.load(path) - pcm).max() <= 0.5 / audio.FULL_SCALE
    assert list(tmp_path.iterdir()) == [path]


def test_save_clips_to_full_scale(tmp_path):
    audio.save(tmp_path / "loud.wav", np.array([2.0, -2.0, 1.0, -1.0]))
    assert np.array_equal(audio.load(tmp_path / "loud.wav") * audio.FULL_SCALE, [32767, -32768, 32767, -32768])


@pytest.mark.parametrize("name", ["out.mp3", "out", "absent/out.wav"])
def test_unwritable_paths_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot write"):
        audio.save(tmp_path / name, tone(SAMPLE_RATE))
    assert not any(tmp_path.iterdir())


def test_pcm16_round_trip():
    values = np.arange(-32768, 32768, dtype=np.int16)
    assert audio.to_pcm16(audio.from_pcm16(values.astype("<i2").tobytes())) == values.astype("<i2").tobytes()
    with pytest.raises(UserError, match="even number"):
        audio.from_pcm16(b"abc")


@pytest.mark.parametrize(("source", "target"), [(8_000, 24_000), (44_100, 24_000), (24_000, 16_000), (24_000, 24_000)])
def test_streaming_resampler_equals_offline(source, target):
    pcm, random = tone(source, 1.0), np.random.default_rng(0)
    cuts = np.sort(random.integers(0, len(pcm), 30))
    resampler, pieces = audio.Resampler(source, target), np.split(pcm, cuts)
    out = [resampler.push(piece, final=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    whole = audio.resample(pcm, source, target)
    streamed = np.concatenate(out)
    assert streamed.dtype == whole.dtype == np.float32
    assert abs(len(whole) - target) <= 1 and len(streamed) == len(whole)
    assert np.abs(streamed - whole).max() < 1e-4


def test_resampling_at_the_same_rate_copies():
    pcm = tone(SAMPLE_RATE)
    assert audio.resample(pcm, SAMPLE_RATE) is pcm


def test_blocks_keep_every_sample():
    pcm, random = np.arange(10_000, dtype=np.float32), np.random.default_rng(0)
    blocks = audio.Blocks(960)
    out = [block for piece in np.split(pcm, np.sort(random.integers(0, 10_000, 40))) for block in blocks.push(piece)]
    assert len(out) == 10 and all(block.shape == (960,) for block in out)
    assert np.array_equal(np.concatenate([*out, blocks.rest()]), pcm)
    assert not len(blocks.rest())


def test_loading_raises_no_warning(tmp_path):
    audio.save(tmp_path / "a.wav", tone(SAMPLE_RATE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio.load(tmp_path / "a.wav")


@pytest.mark.parametrize("end", [0.0, 0.3, 0.5, 3.0])
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_silent_end_is_cut_to_half_a_second(end, noise):
    tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) / 20)
    rest = noise * np.random.default_rng(0).standard_normal(round(end * SAMPLE_RATE))
    pcm = np.concatenate([tone, rest]).astype(np.float32)
    cut = audio.cut_silent_end(pcm)
    assert np.array_equal(cut, pcm[: len(cut)])
    assert len(cut) / SAMPLE_RATE == pytest.approx(1 + min(end, 0.5), abs=0.02)


def test_recording_without_sound_stays_whole():
    assert len(audio.cut_silent_end(np.zeros(SAMPLE_RATE, np.float32))) == SAMPLE_RATE
    assert len(audio.cut_silent_end(np.zeros(0, np.float32))) == 0
