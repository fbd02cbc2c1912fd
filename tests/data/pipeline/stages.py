"""Small stages for the tests of the runner; worker processes import them from here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import Rule, Rules, RulesConfig
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import AudioInfo, Clip
from speechgpt2.types import SAMPLE_RATE


@dataclass(frozen=True)
class TakeConfig:
    kind: Literal["take"] = "take"


class Take(Stage[TakeConfig]):
    """A file at 24 kHz becomes a standard recording."""

    version = 1

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        path = clip_audio.workspace.source(clip.audio.path)
        assert path is not None
        if path.stem == "crash":
            os._exit(3)
        if path.stem == "bug":
            raise ZeroDivisionError("one of ours")
        try:
            pcm = soundfile.read(path, dtype="float32")[0]
        except soundfile.SoundFileError as error:
            raise Rejected("corrupt", str(error)) from None
        name, samples = clip_audio.workspace.add_recording([pcm])
        info = AudioInfo(clip.audio.path, SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
        return replace(clip, audio=info)


@dataclass(frozen=True)
class CutConfig:
    kind: Literal["cut"] = "cut"
    seconds: float = 0.5


class Cut(Stage[CutConfig]):
    """Pieces of `seconds`."""

    version = 1

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        step, pieces = self.config.seconds, []
        for number in range(int(clip.audio.duration / step)):
            info = replace(clip.audio, start=number * step, duration=step)
            pieces.append(replace(clip, id=f"{clip.id}-{number:04d}", parent_id=clip.id, audio=info))
        return pieces


@dataclass(frozen=True)
class LevelConfig:
    kind: Literal["level"] = "level"
    calls: str = ""  # a file that gets a byte for every call
    pause: float = 0.0


class Level(Stage[LevelConfig]):
    """The level in dB."""

    version = 1

    @property
    def identity(self) -> str:
        return "level"  # neither the file nor the pause changes the result

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        if self.config.calls:
            with Path(self.config.calls).open("ab") as file:
                file.write(b".")
        time.sleep(self.config.pause)
        level = 10 * np.log10(np.square(clip_audio.pcm).mean() + 1e-10)
        return replace(clip, quality=replace(clip.quality, loudness=round(float(level), 3)))


def steps(calls: str = "", pause: float = 0.0, least: float = -30.0):
    rule = Rule("quiet", "quality.loudness", at_least=least)
    return [
        Take(TakeConfig()), Cut(CutConfig()), Level(LevelConfig(calls=calls, pause=pause)),
        Rules(RulesConfig(rules=(rule,))),
    ]  # fmt: skip
