"""Decode any file to a standard recording: 24 kHz, mono, 16 bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from speechgpt2.audio import Resampler
from speechgpt2.data.decoding import AudioFile, Undecodable, open_audio
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import AudioInfo, Clip
from speechgpt2.types import SAMPLE_RATE


@dataclass(frozen=True)
class DecodeConfig:
    """Options of decoding.

    Attributes:
        max_hours: longest file.
        channels: "mix" them, or "split" into a clip for each, such as the two sides of a call.
    """

    kind: Literal["decode"] = "decode"
    max_hours: float = 12.0
    channels: Literal["mix", "split"] = "mix"


class Decode(Stage[DecodeConfig]):
    """Decodes the file of a clip to a standard recording, or to one for each channel."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip | list[Clip]:
        """Return the clip, or a clip for each channel."""
        path = clip_audio.workspace.source(clip.audio.path)
        if path is None or not path.is_file():
            raise Rejected("unreadable", f"no file {clip.audio.path!r} in the folder of sources")
        try:
            with open_audio(path) as file:
                count = file.channels if self.config.channels == "split" else 0
            if count < 2:
                return self._decoded(clip, clip_audio, path, None)
            channels = [self._decoded(clip, clip_audio, path, channel) for channel in range(count)]
        except Undecodable as error:
            raise Rejected(error.reason, error.detail) from None
        return [replace(channel, id=f"{clip.id}-c{n}", parent_id=clip.id) for n, channel in enumerate(channels)]

    def _decoded(self, clip: Clip, clip_audio: ClipAudio, path: Path, channel: int | None) -> Clip:
        with open_audio(path) as file:
            pcm_hash, samples = clip_audio.workspace.add_recording(self._blocks(file, channel))
        info = AudioInfo(clip.audio.path, file.rate, file.channels, 0.0, samples / SAMPLE_RATE, file.format, pcm_hash)
        return replace(clip, audio=info)

    def _blocks(self, file: AudioFile, channel: int | None) -> Iterator[np.ndarray]:
        """Yield float32 `[N]` at 24 kHz: one channel, or the mean of all."""
        resampler = Resampler(file.rate)
        for block in file.blocks(self.config.max_hours):
            yield resampler.push(block.mean(axis=1) if channel is None else block[:, channel])
        yield resampler.push(np.zeros(0, np.float32), final=True)
