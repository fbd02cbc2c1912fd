"""Change finished speech to a style, as a stream: rate, then pitch, whisper and level.

    delivery = Delivery(Style(rate=1.25))
    for pcm in speech: play(delivery.push(pcm))
    play(delivery.finish())

Chunks of any size give the same bits as one. Output sample n belongs to input sample n · rate, so nothing is shifted in
time. A stage only waits for the input that it needs: up to 20 ms + 12.5 ms · rate for rate and pitch, 20 ms for a
whisper, 5 ms for a higher level. A style that changes nothing returns its input at once.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from speechgpt2.dsp.level import Gain, Limiter
from speechgpt2.dsp.pitch_shift import FractionalResampler, pitch_ratio
from speechgpt2.dsp.time_stretch import TimeStretcher
from speechgpt2.dsp.whisper import Whisperer
from speechgpt2.style import Style


class AudioStage(Protocol):
    """A stream of audio that is changed on its way."""

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]` float32 at 24 kHz; returns the output that is complete."""
        ...

    def finish(self) -> np.ndarray:
        """Return the rest of the output."""
        ...


class Delivery:
    """Speaks one stream in a style.

    Args:
        style: The style.

    Attributes:
        rate: Seconds of input in a second of output.
    """

    def __init__(self, style: Style):
        self.rate = style.rate
        self._stages = _stages(style)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]` float32 at 24 kHz; returns the output that is complete, about `[N / rate]`."""
        for stage in self._stages:
            pcm = stage.push(pcm)
        return pcm

    def finish(self) -> np.ndarray:
        """Return the rest of the output."""
        rest = np.zeros(0, np.float32)
        for stage in self._stages:
            rest = np.concatenate([stage.push(rest), stage.finish()])
        return rest


def deliver(pcm: np.ndarray, style: Style) -> np.ndarray:
    """Return all of `pcm [N]` in a style, `[N / rate]` float32."""
    delivery = Delivery(style)
    return np.concatenate([delivery.push(pcm), delivery.finish()])


def source_samples(played: int, rate: float) -> int:
    """Return how many samples of the input `played` samples of the output hold, or one half of an output sample more.

    So what was played to its end counts as a whole, although the output's length is rounded.
    """
    return played if rate == 1.0 else int((played + 0.5) * rate)


def _stages(style: Style) -> list[AudioStage]:
    stages: list[AudioStage] = []
    ratio = pitch_ratio(style.pitch)
    if style.rate != ratio:
        stages.append(TimeStretcher(style.rate / float(ratio)))
    if ratio != 1:
        stages.append(FractionalResampler(ratio))
    if style.whisper:
        stages.append(Whisperer())
    if style.level:
        stages.append(Limiter(style.level) if style.level > 0 else Gain(style.level))
    return stages
