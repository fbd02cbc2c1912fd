"""Audio in files and streams: load, save, resample, 16-bit PCM, and blocks of one size.

Inside the project audio is `pcm [N]`: float32 in −1…1, mono, at 24 kHz. This module converts other rates, channels and
formats.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from speechgpt2 import hub
from speechgpt2.errors import FileWarning, UserError
from speechgpt2.media import Media, open_media
from speechgpt2.types import SAMPLE_RATE

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16"}  # what `save` writes, by the file's suffix
FULL_SCALE = 32_768  # of 16-bit samples
SILENT, SILENT_BESIDE_SPEECH = 1e-3, 1e-2  # root mean squares: −60 dBFS, and 40 dB below the loudest
UNKNOWN_SECONDS = 1e9  # libsndfile states the highest number there is where a header states none
MAX_SECONDS = 3600.0  # of a recording that `load` holds in memory: 350 MB


class AudioWarning(FileWarning):
    """Audio could be read in part only. The message is one line for the user."""


class TooLong(UserError):
    """A recording is longer than what is read of one."""


class AudioReader:
    """A recording as blocks of `pcm [N]`, read once and in bounded memory.

    reader = AudioReader(path)
    for pcm in reader: ...
    print(reader.warning)                       # "speech.mp3 is truncated: …", or None

    Args:
        source: A path, or a seekable binary file.
        name: What error messages call it; None for the path.
        max_seconds: A longer recording is an error.

    Attributes:
        seconds: Length of what was read so far.
        promised_seconds: Length of the whole by its header, known with the first block; 0 if there it is not stated.
        warning: What is wrong with the file, known at its end; None if nothing is.
    """

    def __init__(self, source: Path | BinaryIO, name: str | None = None, max_seconds: float = MAX_SECONDS):
        self.source, self.name, self.max_seconds = source, name or str(source), max_seconds
        self.seconds, self.promised_seconds = 0.0, 0.0
        self.warning: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield blocks `[N]`, none of them empty.

        Raises:
            TooLong: It is longer than `max_seconds`. Where its header says so, it is not decoded at all.
            UserError: It is absent, a folder, not audio or empty, or holds samples that are not finite.
        """
        if isinstance(self.source, Path) and not self.source.is_file():
            raise UserError(f"{self.name}: {'a folder, not an audio file' if self.source.is_dir() else 'no such file'}")
        with open_media(self.source, self.name) as media:
            self.promised_seconds = media.promised if media.promised < UNKNOWN_SECONDS else 0.0
            self._check_length(self.promised_seconds)
            for pcm in _resampled(media):
                self.seconds += len(pcm) / SAMPLE_RATE
                self._check_length(self.seconds)
                yield pcm
            if not self.seconds:
                raise UserError(f"{self.name}: holds no audio")
            if media.warning:
                self.warning = f"{self.name} {media.warning}"

    def _check_length(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise TooLong(f"{self.name}: is longer than {self.max_seconds:g} s, the most that is read here")


def _resampled(media: Media) -> Iterator[np.ndarray]:
    """Yield the samples of `media` as blocks of `pcm [N]`, none of them empty."""
    resampler, nothing = Resampler(media.rate), np.zeros(0, np.float32)
    for block in media.blocks:
        if len(pcm := resampler.push(block.mean(axis=1))):
            yield pcm
    if len(rest := resampler.push(nothing, final=True)):
        yield rest


def load(path: str | Path, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Read a file as `pcm [N]`: any rate, any format of `media`, channels averaged.

    A truncated file is read as far as possible, with an `AudioWarning`.

    Args:
        path: The file.
        max_seconds: A longer recording is an error.

    Raises:
        UserError: It is absent, a folder, not audio, empty or too long, or holds samples that are not finite.
    """
    reader = AudioReader(Path(path), max_seconds=max_seconds)
    pcm = np.concatenate(list(reader))
    if reader.warning:
        warnings.warn(reader.warning, AudioWarning, stacklevel=2)
    return pcm


def save(path: str | Path, pcm: np.ndarray) -> None:
    """Write `pcm [N]` with 16 bits as WAV or FLAC, by the file's suffix. The file appears when it is complete.

    Raises:
        UserError: If the suffix is another, or the file cannot be written.
    """
    path = Path(path)
    check_format(path)
    # libsndfile does not tell when a disk is full; Python's own writing does.
    data = encode(_to_int16(pcm), path.suffix[1:].upper(), SUBTYPES[path.suffix.lower()])
    hub.write_atomically(path, lambda scratch: scratch.write_bytes(data))


def encode(samples: np.ndarray, container: str, subtype: str) -> bytes:
    """Return a file of `samples [N]` (float32 in −1…1, or int16) at 24 kHz, in a format of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format=container, subtype=subtype)
    return file.getvalue()


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


def cut_silent_end(pcm: np.ndarray) -> np.ndarray:
    """Cut silence at the end of a recording `[N]` to half a second, as a live turn ends with.

    Silent are blocks of 20 ms below −60 dBFS, or 40 dB below the loudest. A recording without any sound stays whole.
    """
    block = SAMPLE_RATE // 50
    padded = np.pad(pcm, (0, -len(pcm) % block)).reshape(-1, block)
    level = np.sqrt(np.square(padded).mean(1))
    loud = np.nonzero(level > max(SILENT, level.max(initial=0.0) * SILENT_BESIDE_SPEECH))[0]
    return pcm[: (loud[-1] + 1) * block + SAMPLE_RATE // 2] if len(loud) else pcm
