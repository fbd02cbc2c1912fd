"""Voice activity detection with Silero VAD, version 5 (assets/silero_vad.onnx, MIT licence), on onnxruntime.

    vad = SileroVad()
    probability = vad.probability(block)         # [VAD_BLOCK] float32 at 16 kHz: the next 32 ms

Source: https://github.com/snakers4/silero-vad. Live dialogues and the cleaning of recordings both use it. They resample
and cut the audio into blocks themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from speechgpt2 import hub
from speechgpt2.errors import UserError

VAD_SAMPLE_RATE = 16_000  # Hz
VAD_BLOCK = 512  # samples in a block (32 ms)
CONTEXT = 64  # samples of the previous block that the network sees again


class SileroVad:
    """One audio stream. The network is recurrent, and this object holds its state.

    Raises:
        UserError: If onnxruntime is not installed.
    """

    def __init__(self) -> None:
        self._network = network()
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def probability(self, block: np.ndarray) -> float:
        """Return the probability of speech in the stream's next block `[VAD_BLOCK]` (float32 at 16 kHz)."""
        samples = np.concatenate([self._context, block])
        inputs = {"input": samples[None], "state": self._state, "sr": np.array(VAD_SAMPLE_RATE, np.int64)}
        probability, self._state = self._network.run(None, inputs)
        self._context = block[-CONTEXT:]
        return float(probability[0, 0])


@cache
def network() -> Any:
    """Load the network once per process.

    It runs in one thread, because many streams share the processor with a model.

    Raises:
        UserError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("voice activity detection needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(hub.ASSETS / "silero_vad.onnx"), options, ["CPUExecutionProvider"])
