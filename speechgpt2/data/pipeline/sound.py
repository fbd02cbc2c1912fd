"""Where the sound of a run lies, and how a stage gets at that of a clip.

Files are decoded once, into standard recordings (24 kHz, mono, FLAC) named by their content; from then on a clip is a
span of one of them with a gain. So nothing is copied when a recording falls into segments.
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
    """The folders of a run: `sources`, which is only read, and `folder`, which holds the standard recordings."""

    def __init__(self, sources: Path, folder: Path):
        self.sources, self.folder = sources, folder

    def source(self, path: str) -> Path | None:
        """The file of a clip as it was found; None if that is no path below the sources' folder."""
        try:
            found = (self.sources / path).resolve()
            inside = found.is_relative_to(self.sources.resolve())
        except (ValueError, OSError, RuntimeError):  # a zero byte, a name too long, a circle of links
            return None
        return found if inside and path else None

    def recording(self, pcm_hash: str) -> Path:
        """The file of a standard recording."""
        return self.folder / "audio" / pcm_hash[:2] / f"{pcm_hash}.flac"

    def add(self, blocks: Iterable[np.ndarray]) -> tuple[str, int]:
        """Keep a standard recording, given as blocks `[N]` float32 at 24 kHz; returns its hash and samples."""
        (self.folder / "audio").mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "audio" / f".{secrets.token_hex(8)}"
        digest, samples = hashlib.sha256(), 0
        try:
            with soundfile.SoundFile(
                scratch, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC", compression_level=0
            ) as file:
                for block in blocks:
                    coded = to_int16(block)
                    digest.update(coded.astype("<i2").tobytes())
                    file.write(coded)
                    samples += len(coded)
            target = self.recording(digest.hexdigest())
            target.parent.mkdir(exist_ok=True)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        return digest.hexdigest(), samples


class Sound:
    """The sound of one clip, read when it is first asked for; what stages derive from it is kept along."""

    def __init__(self, clip: Clip, workspace: Workspace):
        self.info, self.workspace = clip.audio, workspace
        self._known: dict[str, Any] = {}  # without the gain

    def of(self, clip: Clip) -> Sound:
        """The sound of what a stage made of the clip; where only the gain is another, nothing is read again."""
        other = Sound(clip, self.workspace)
        if _span(other.info) == _span(self.info):
            other._known = self._known
        return other

    @property
    def raw(self) -> np.ndarray:
        """float32 [N] at 24 kHz, as recorded."""
        if "pcm" not in self._known:
            self._known["pcm"] = self.span(self.info.start, self.info.duration)
        return self._known["pcm"]

    @cached_property
    def pcm(self) -> np.ndarray:
        """float32 [N] at 24 kHz, with the clip's gain."""
        return self.raw * self._gain

    @property
    def _gain(self) -> np.float32:
        return np.float32(10 ** (self.info.gain / 20))

    def span(self, start: float, duration: float) -> np.ndarray:
        """float32 [N] from `start` seconds of the recording, without gain. Errors: `UserError` if its file is gone."""
        first, count = round(start * SAMPLE_RATE), round(duration * SAMPLE_RATE)
        with self._opened() as file:
            file.seek(first)
            return file.read(count, dtype="float32")

    @property
    def samples(self) -> int:
        """How many `pcm` has, without reading it: rounding can ask for some more than the recording holds."""
        first, count = round(self.info.start * SAMPLE_RATE), round(self.info.duration * SAMPLE_RATE)
        with self._opened() as file:
            return min(count, file.frames - first)

    @contextmanager
    def _opened(self) -> Iterator[soundfile.SoundFile]:
        path = self.workspace.recording(self.info.pcm_hash)
        try:
            with soundfile.SoundFile(path) as file:
                yield file
        except (soundfile.SoundFileError, OSError) as error:
            raise UserError(f"{path}: a recording of this run is missing or damaged ({error})") from None

    def once(self, name: str, derive: Callable[[np.ndarray], np.ndarray], degree: int) -> np.ndarray:
        """`derive(pcm)`, computed once for all stages that ask for `name`, whatever gain a stage sets between them:
        what it gives must grow with the gain to the power of `degree`."""
        if name not in self._known:
            self._known[name] = derive(self.raw)
        return self._known[name] * self._gain**degree


def _span(info: AudioInfo) -> tuple[str, float, float]:
    return info.pcm_hash, info.start, info.duration


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """float `[N]` -> int16 `[N]`; what exceeds full scale is clipped."""
    return np.clip(np.round(np.asarray(pcm, np.float32) * 32768), -32768, 32767).astype(np.int16)
