"""Voice activity of a microphone, every 32 ms: Silero's network on a stream of chunks of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE, SileroVad

BLOCK_SAMPLES = VAD_BLOCK * SAMPLE_RATE // VAD_SAMPLE_RATE  # at 24 kHz (32 ms)


class VadFrame(NamedTuple):
    """A block of the stream.

    Attributes:
        at: The sample (24 kHz) of the stream at which it ends.
        probability: Probability of speech in it.
        block: The block at 16 kHz, `[VAD_BLOCK]` float32.
    """

    at: int
    probability: float
    block: np.ndarray


class VoiceActivityDetector:
    """The voice activity of one microphone.

    Raises:
        UserError: onnxruntime is not installed.
    """

    def __init__(self) -> None:
        self._vad = SileroVad()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)
        self._at = 0

    def push(self, pcm: np.ndarray) -> Iterator[VadFrame]:
        """Add `pcm [N]`, float32 at 24 kHz. Yields the blocks that it completes, in order."""
        for block in self._blocks.push(self._resampler.push(pcm)):
            self._at += BLOCK_SAMPLES
            yield VadFrame(self._at, self._vad.probability(block), block)
