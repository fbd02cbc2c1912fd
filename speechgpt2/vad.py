"""The Silero network, version 5 (assets/silero_vad.onnx, MIT), on onnxruntime: whether somebody speaks, every 32 ms.

    hearing = Hearing()
    probability = hearing.judge(block)         # [BLOCK] float32 at 16 kHz

Live it is the dialogue's ear, on recordings a detector of the cleaning; both resample and cut into blocks themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from speechgpt2 import hub
from speechgpt2.errors import UserError

RATE = 16_000  # Hz that the network hears
BLOCK = 512  # of its samples at a time
CONTEXT = 64  # samples of the block before, which it sees again


class Hearing:
    """One stream of sound; the network is recurrent, and its state is this object's. Errors: `UserError`."""

    def __init__(self) -> None:
        self._network = network()
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def judge(self, block: np.ndarray) -> float:
        """Probability of speech in the next block, `[BLOCK]` float32."""
        seen = np.concatenate([self._context, block])
        inputs = {"input": seen[None], "state": self._state, "sr": np.array(RATE, np.int64)}
        probability, self._state = self._network.run(None, inputs)
        self._context = block[-CONTEXT:]
        return float(probability[0, 0])


@cache
def network() -> Any:
    """The network, loaded once, in one thread: many streams share a processor with a model. Errors: `UserError`."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("telling speech from silence needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(hub.ASSETS / "silero_vad.onnx"), options, ["CPUExecutionProvider"])
