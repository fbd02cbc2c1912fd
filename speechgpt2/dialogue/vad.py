"""Whether someone speaks, every 32 ms: the Silero network (assets/silero_vad.onnx, MIT) on onnxruntime.

    ear = VoiceActivity()
    for heard in ear.push(pcm): ...        # any number of samples; Heard(at, probability, level)

It is recurrent, and its state is this object's: one for each microphone. The network itself is loaded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

NETWORK = Path(__file__).parents[1] / "assets" / "silero_vad.onnx"
RATE = 16_000  # Hz that the network hears
BLOCK = 512  # of its samples at a time
CONTEXT = 64  # samples of the block before, which it sees again
STEP = BLOCK * SAMPLE_RATE // RATE  # samples of ours in a block (32 ms)


class Heard(NamedTuple):
    """A block that ends `at` samples into the stream: the `probability` of speech in it, and its `level` (RMS)."""

    at: int
    probability: float
    level: float


class VoiceActivity:
    """One microphone. Errors: `UserError` if onnxruntime is not installed."""

    def __init__(self) -> None:
        self._network = network()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, RATE), Blocks(BLOCK)
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._at = 0

    def push(self, pcm: np.ndarray) -> Iterator[Heard]:
        """Take in `pcm [N]` float32 at 24 kHz; what is known by now, in order."""
        for block in self._blocks.push(self._resampler.push(pcm)):
            self._at += STEP
            yield Heard(self._at, self._judge(block), float(np.sqrt(np.mean(np.square(block)))))

    def _judge(self, block: np.ndarray) -> float:
        seen = np.concatenate([self._context, block])
        inputs = {"input": seen[None], "state": self._state, "sr": np.array(RATE, np.int64)}
        probability, self._state = self._network.run(None, inputs)
        self._context = block[-CONTEXT:]
        return float(probability[0, 0])


@cache
def network() -> Any:
    """The network, in one thread: many microphones share a processor with a model. Errors: `UserError`."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("hearing turns needs onnxruntime: pip install 'speechgpt2[server]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(NETWORK), options, providers=["CPUExecutionProvider"])
