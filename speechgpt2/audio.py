"""Audio in files and streams: load, save, resample, 16-bit PCM, and blocks of one size.

Inside the project audio is `pcm [N]`: float32 in −1…1, mono, at 24 kHz. This module converts other rates, channels and
formats.
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

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16"}  # what `save` writes, by the file's suffix
RATES = range(1_000, 768_001)  # Hz; anything else is a damaged header, and would inflate on resampling
FULL_SCALE = 32_768  # of 16-bit samples


def load(path: str | Path) -> np.ndarray:
    """Read a file as `pcm [N]`: any rate, any format of libsndfile (WAV, FLAC, OGG, MP3, …), channels averaged.

    Raises:
        UserError: If it is absent, a folder, not audio, empty, or holds samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not an audio file' if path.is_dir() else 'no such file'}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(getattr(error, "error_string", None) or error).rstrip(".")
        raise UserError(f"{path}: cannot be read as audio ({reason})") from None
    if rate not in RATES:
        raise UserError(f"{path}: a sampling rate of {rate} Hz is not supported")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are no numbers (NaN or infinite)")
    pcm = resample(samples.mean(axis=1), rate)
    if not len(pcm):
        raise UserError(f"{path}: holds no audio")
    return pcm


def save(path: str | Path, pcm: np.ndarray) -> None:
    """Write `pcm [N]` with 16 bits as WAV or FLAC, by the file's suffix. The file appears when it is complete.

    Raises:
        UserError: If the suffix is another, or the file cannot be written.
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
    """Raise `UserError` unless `save` supports the file's suffix. Commands check it before they work for minutes."""
    if Path(path).suffix.lower() not in SUBTYPES:
        raise UserError(f"cannot write {path}: the suffix must be {' or '.join(SUBTYPES)}")


def to_pcm16(pcm: np.ndarray) -> bytes:
    """Convert `pcm [N]` to 2·N bytes of little-endian 16-bit samples, clipped to full scale."""
    return _to_int16(pcm).astype("<i2").tobytes()


def from_pcm16(data: bytes) -> np.ndarray:
    """Convert little-endian 16-bit samples to `pcm [N]`. Raises `UserError` for an odd number of bytes."""
    if len(data) % 2:
        raise UserError(f"16-bit samples need an even number of bytes, got {len(data)}")
    return np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE


def _to_int16(pcm: np.ndarray) -> np.ndarray:
    scaled = np.asarray(pcm, np.float32) * FULL_SCALE
    return np.clip(np.round(scaled), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def resample(pcm: np.ndarray, source: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Resample `pcm [N]` from `source` Hz to `target` Hz: `[N · target / source]`, float32."""
    pcm = np.asarray(pcm, np.float32)
    return pcm if source == target else soxr.resample(pcm, source, target)


class Resampler:
    """Streaming `resample`. The whole output equals the offline one, some milliseconds later."""

    def __init__(self, source: int, target: int = SAMPLE_RATE):
        self._stream = None if source == target else soxr.ResampleStream(source, target, 1, dtype="float32")

    def push(self, pcm: np.ndarray, final: bool = False) -> np.ndarray:
        """Resample a chunk `[N]`, the last one with `final`; return what is ready, `[M]` float32, possibly empty."""
        pcm = np.asarray(pcm, np.float32)
        return pcm if self._stream is None else self._stream.resample_chunk(pcm, last=final)


class Blocks:
    """Cuts a stream of chunks of any length into blocks of `size` samples.

    blocks = Blocks(960)
    for chunk in microphone:
        for block in blocks.push(chunk): ...    # [960] each
    rest = blocks.rest()                        # [fewer than 960]
    """

    def __init__(self, size: int):
        self.size = size
        self._held = np.zeros(0, np.float32)  # fewer than `size` samples

    def push(self, pcm: np.ndarray) -> Iterator[np.ndarray]:
        """Add `pcm [N]` and return the blocks that are complete now, in order."""
        held = np.concatenate([self._held, np.asarray(pcm, np.float32)])
        whole = len(held) // self.size * self.size
        self._held = held[whole:].copy()  # not a view, which would keep the chunk alive
        return iter(held[:whole].reshape(-1, self.size))

    def rest(self) -> np.ndarray:
        """Return the last samples of the stream, fewer than `size`, and start anew."""
        rest, self._held = self._held, np.zeros(0, np.float32)
        return rest


def check_audio(pcm: np.ndarray) -> np.ndarray:
    """Check samples from outside.

    Returns:
        `[N]` float32, a copy.

    Raises:
        UserError: `pcm` is not a row of finite samples.
    """
    pcm = np.array(pcm, np.float32)
    if pcm.ndim != 1 or not np.isfinite(pcm).all():
        raise UserError("audio must be a row of finite samples, float32 at 24 kHz")
    return pcm
