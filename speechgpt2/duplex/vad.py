"""The ear of a live microphone: whether someone speaks, every 32 ms.

ear = VoiceActivity()
for heard in ear.push(pcm): ...        # any number of samples; Heard(at, probability, block)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE, SileroVad

STEP = VAD_BLOCK * SAMPLE_RATE // VAD_SAMPLE_RATE  # samples of ours in a block (32 ms)


class Heard(NamedTuple):
    """A block that ends `at` samples into the stream: the `probability` of speech in it, and itself at 16 kHz."""

    at: int
    probability: float
    block: np.ndarray


class VoiceActivity:
    """One microphone. Errors: `UserError` if onnxruntime is not installed."""

    def __init__(self) -> None:
        self._vad = SileroVad()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)
        self._at = 0

    def push(self, pcm: np.ndarray) -> Iterator[Heard]:
        """Take in `pcm [N]` float32 at 24 kHz; what is known by now, in order."""
        for block in self._blocks.push(self._resampler.push(pcm)):
            self._at += STEP
            yield Heard(self._at, self._vad.probability(block), block)
