"""Sound in files and in streams: load, save, resample, PCM16, and blocks of one size.

Inside the project sound is float32 in −1…1, mono, at 24 kHz, `pcm [N]`; other rates, channels and formats end here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16"}  # what `save` writes, by the file's ending
RATES = range(1_000, 768_001)  # Hz; anything else is a damaged header, and would inflate on resampling
FULL_SCALE = 32_768  # of 16 bit


def load(path: str | Path) -> np.ndarray:
    """Read a file as `pcm [N]`: any rate, any format libsndfile knows (WAV, FLAC, OGG, MP3, …), channels averaged.

    Errors: `UserError` if it is absent, a folder, no audio, empty, or holds samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a sound file' if path.is_dir() else 'no such file'}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(getattr(error, "error_string", None) or error).rstrip(".")
        raise UserError(f"{path}: cannot be read as sound ({reason})") from None
    if rate not in RATES:
        raise UserError(f"{path}: a sampling rate of {rate} Hz is not supported")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are no numbers (NaN or infinite)")
    pcm = resample(samples.mean(axis=1), rate)
    if not len(pcm):
        raise UserError(f"{path}: holds no sound")
    return pcm


def save(path: str | Path, pcm: np.ndarray) -> None:
    """Write `pcm [N]` with 16 bit, as WAV or FLAC by the file's ending; the file appears when it is complete.

    Errors: `UserError` for another ending, or if it cannot be written.
    """
    path = Path(path)
    check_format(path)

    def write(scratch: Path) -> None:
        try:
            soundfile.write(scratch, _to_int16(pcm), SAMPLE_RATE, subtype=SUBTYPES[path.suffix.lower()])
        except soundfile.LibsndfileError as error:
            raise UserError(f"cannot write {path}: {error.error_string.rstrip('.')}") from None

    hub.write_atomically(path, write)


def check_format(path: str | Path) -> None:
    """Errors: `UserError` unless `save` knows the file's ending; a command asks before it spends minutes."""
    if Path(path).suffix.lower() not in SUBTYPES:
        raise UserError(f"cannot write {path}: the ending must be {' or '.join(SUBTYPES)}")


def to_pcm16(pcm: np.ndarray) -> bytes:
    """`pcm [N]` -> 2·N bytes of little-endian 16-bit samples; what exceeds full scale is clipped."""
    return _to_int16(pcm).astype("<i2").tobytes()


def from_pcm16(data: bytes) -> np.ndarray:
    """The inverse of `to_pcm16`. Errors: `UserError` for an odd number of bytes."""
    if len(data) % 2:
        raise UserError(f"16-bit samples need an even number of bytes, got {len(data)}")
    return np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE


def _to_int16(pcm: np.ndarray) -> np.ndarray:
    scaled = np.asarray(pcm, np.float32) * FULL_SCALE
    return np.clip(np.round(scaled), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def resample(pcm: np.ndarray, source: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """`pcm [N]` at `source` Hz -> `[N · target / source]` float32 at `target` Hz."""
    pcm = np.asarray(pcm, np.float32)
    return pcm if source == target else soxr.resample(pcm, source, target)


class Resampler:
    """`resample` for a stream: what comes out in all is what the whole would give, some milliseconds later."""

    def __init__(self, source: int, target: int = SAMPLE_RATE):
        self._stream = None if source == target else soxr.ResampleStream(source, target, 1, dtype="float32")

    def push(self, pcm: np.ndarray, final: bool = False) -> np.ndarray:
        """Take in a chunk `[N]`, the last one with `final`; returns what is ready, `[M]` float32, possibly nothing."""
        pcm = np.asarray(pcm, np.float32)
        return pcm if self._stream is None else self._stream.resample_chunk(pcm, last=final)


class Blocks:
    """Cuts a stream of arrays of any length into whole blocks of `size` samples.

    blocks = Blocks(960)
    for chunk in microphone:
        for block in blocks.push(chunk): ...    # [960] each
    rest = blocks.rest()                        # [fewer than 960]
    """

    def __init__(self, size: int):
        self.size = size
        self._held = np.zeros(0, np.float32)  # fewer than `size` samples

    def push(self, pcm: np.ndarray) -> Iterator[np.ndarray]:
        """Take in `pcm [N]`; returns the blocks that are complete by now, in order."""
        held = np.concatenate([self._held, np.asarray(pcm, np.float32)])
        whole = len(held) // self.size * self.size
        self._held = held[whole:].copy()  # not a view, which would keep the chunk alive
        return iter(held[:whole].reshape(-1, self.size))

    def rest(self) -> np.ndarray:
        """What is left at the end of the stream, fewer than `size` samples; the next stream starts afresh."""
        rest, self._held = self._held, np.zeros(0, np.float32)
        return rest
