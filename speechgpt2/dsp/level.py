"""Make a stream louder or quieter. A limiter keeps a louder one below full scale, without clipping it."""

from __future__ import annotations

import numpy as np

from speechgpt2.types import SAMPLE_RATE

BLOCK = SAMPLE_RATE // 400  # samples: 2.5 ms
CEILING = 0.95
RELEASE = 0.02  # part of the attenuation that is lost in a block: it halves in 90 ms


class Gain:
    """Multiplies a stream by a gain of at most 0 dB."""

    def __init__(self, decibels: float):
        self._factor = np.float32(10 ** (decibels / 20))

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Return `pcm [N]` at its new level."""
        return (pcm * self._factor).astype(np.float32, copy=False)

    def finish(self) -> np.ndarray:
        """Return nothing: a gain holds nothing back."""
        return np.zeros(0, np.float32)


class Limiter:
    """Raises a stream's level, and lowers the gain around peaks. It holds back less than two blocks of 2.5 ms."""

    def __init__(self, decibels: float):
        self._factor = np.float32(10 ** (decibels / 20))
        self._kept = np.zeros(0, np.float32)  # louder already
        self._attenuation = 1.0  # at the end of the last block

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]`; returns the output that is complete, float32."""
        kept = np.concatenate([self._kept, (pcm * self._factor).astype(np.float32, copy=False)])
        count = len(kept) // BLOCK
        blocks = kept[: count * BLOCK].reshape(count, BLOCK)
        # In every block the gain goes from one value to another, and neither may exceed what the block allows.
        allowed = np.minimum(1.0, CEILING / np.maximum(np.abs(blocks).max(axis=1, initial=0.0), CEILING))
        output = [np.zeros(0, np.float32)]
        for block, own, following in zip(blocks, allowed, allowed[1:]):
            begin = min(self._attenuation, float(own))  # lower only at the start of the stream
            self._attenuation = min(float(own), float(following), begin + RELEASE * (1 - begin))
            ramp = begin + (self._attenuation - begin) * np.arange(1, BLOCK + 1) / BLOCK
            output.append((block * ramp).astype(np.float32))
        self._kept = kept[max(0, count - 1) * BLOCK :]
        return np.concatenate(output)

    def finish(self) -> np.ndarray:
        """Return the rest. All output together is as long as the input."""
        left = len(self._kept)
        return self.push(np.zeros(2 * BLOCK, np.float32))[:left]
