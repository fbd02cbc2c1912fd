"""The audio files of a run, and the audio of a clip.

Files are decoded once, into standard recordings (24 kHz, mono, FLAC) named by their content. A clip is a span of one of
them with a gain, so segmentation copies nothing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechgpt2.data.record import AudioInfo, Clip
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE


class Workspace:
    """The folders of a run: `sources`, which is only read, and `folder`, which has the standard recordings."""

    def __init__(self, sources: Path, folder: Path):
        self.sources, self.folder = sources, folder

    def source(self, path: str) -> Path | None:
        """Return the original file of a clip; None if the path is not below the folder of sources."""
        try:
            absolute = (self.sources / path).resolve()
            is_inside = absolute.is_relative_to(self.sources.resolve())
        except (ValueError, OSError, RuntimeError):  # a zero byte, a name that is too long, a loop of links
            return None
        return absolute if is_inside and path else None

    def recording(self, pcm_hash: str) -> Path:
        """Return the path of a standard recording."""
        return self.folder / "audio" / pcm_hash[:2] / f"{pcm_hash}.flac"

    def add_recording(self, blocks: Iterable[np.ndarray]) -> tuple[str, int]:
        """Store a standard recording.

        Args:
            blocks: its samples, float32 `[N]` at 24 kHz each.

        Returns:
            Its hash and the number of samples.
        """
        (self.folder / "audio").mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "audio" / f".{secrets.token_hex(8)}"
        digest, samples = hashlib.sha256(), 0
        try:
            with soundfile.SoundFile(
                scratch, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC", compression_level=0
            ) as file:
                for block in blocks:
                    rounded = to_int16(block)
                    digest.update(rounded.astype("<i2").tobytes())
                    file.write(rounded)
                    samples += len(rounded)
            target = self.recording(digest.hexdigest())
            target.parent.mkdir(exist_ok=True)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        return digest.hexdigest(), samples


class ClipAudio:
    """The audio of one clip, read on first use. Features that stages derive from it are cached."""

    def __init__(self, clip: Clip, workspace: Workspace):
        self.info, self.workspace = clip.audio, workspace
        self._features: dict[str, Any] = {}  # by name, without the gain; "pcm" is the audio itself

    def for_clip(self, clip: Clip) -> ClipAudio:
        """Return the audio of a clip that a stage made from this one. Clips of the same span share the cache."""
        other = ClipAudio(clip, self.workspace)
        if _span(other.info) == _span(self.info):
            other._features = self._features
        return other

    @property
    def raw(self) -> np.ndarray:
        """float32 `[N]` at 24 kHz, as recorded."""
        if "pcm" not in self._features:
            self._features["pcm"] = self.span(self.info.start, self.info.duration)
        return self._features["pcm"]

    @cached_property
    def pcm(self) -> np.ndarray:
        """float32 `[N]` at 24 kHz, with the clip's gain."""
        return self.raw * self._gain

    @property
    def _gain(self) -> np.float32:
        return np.float32(10 ** (self.info.gain / 20))

    def span(self, start: float, duration: float) -> np.ndarray:
        """Return float32 `[N]` from `start` seconds of the recording, without gain.

        Raises `UserError` if the file is gone.
        """
        first, count = round(start * SAMPLE_RATE), round(duration * SAMPLE_RATE)
        with self._open() as file:
            file.seek(first)
            return file.read(count, dtype="float32")

    @property
    def samples(self) -> int:
        """Length of `pcm`, without reading it. Rounding can ask for a few samples more than the recording has."""
        first, count = round(self.info.start * SAMPLE_RATE), round(self.info.duration * SAMPLE_RATE)
        with self._open() as file:
            return min(count, file.frames - first)

    @contextmanager
    def _open(self) -> Iterator[soundfile.SoundFile]:
        path = self.workspace.recording(self.info.pcm_hash)
        try:
            with soundfile.SoundFile(path) as file:
                yield file
        except (soundfile.SoundFileError, OSError) as error:
            raise UserError(f"{path}: a recording of this run is missing or damaged ({error})") from None

    def cached(self, name: str, derive: Callable[[np.ndarray], np.ndarray], degree: int) -> np.ndarray:
        """Return `derive(pcm)`, computed once for all stages and gains.

        Args:
            name: the name of the feature.
            derive: computes it from the samples without gain.
            degree: it is proportional to this power of the gain, so a gain is applied without computing it again.
        """
        if name not in self._features:
            self._features[name] = derive(self.raw)
        return self._features[name] * self._gain**degree


def _span(info: AudioInfo) -> tuple[str, float, float]:
    return info.pcm_hash, info.start, info.duration


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """Convert float `[N]` to int16 `[N]`; values beyond full scale are clipped."""
    return np.clip(np.round(np.asarray(pcm, np.float32) * 32768), -32768, 32767).astype(np.int16)
