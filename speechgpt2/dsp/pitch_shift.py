"""Read a stream faster or slower, which moves its pitch: a polyphase resampler by a small fraction."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

BLOCK = 240  # output samples that are computed together, so that results do not depend on the size of chunks
ZEROS = 16  # zero crossings of the filter on either side
MOST_PHASES = 64
SHAPE = 8.0  # of the Kaiser window


def pitch_ratio(semitones: float) -> Fraction:
    """Return the ratio of frequencies as a fraction, exact to half a cent."""
    return Fraction(2 ** (semitones / 12)).limit_denominator(MOST_PHASES)


class FractionalResampler:
    """Reads a stream `ratio` times as fast: N samples become N / ratio, and frequencies are multiplied by `ratio`."""

    def __init__(self, ratio: Fraction):
        self._ratio, self._half = ratio, int(np.ceil(ZEROS * max(1.0, float(ratio))))
        self._filters = _filters(ratio, self._half)
        self._start = 1 - self._half  # position in the input of the first sample that is kept
        self._kept = np.zeros(self._half - 1, np.float32)
        self._received = self._sent = 0

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]`; returns the output that is complete, float32."""
        self._received += len(pcm)
        return self._resample(pcm)

    def finish(self) -> np.ndarray:
        """Return the rest."""
        left = round(self._received / self._ratio) - self._sent
        missing = int((left + BLOCK) * self._ratio) + 2 * self._half
        return self._resample(np.zeros(missing, np.float32))[:left]

    def _resample(self, pcm: np.ndarray) -> np.ndarray:
        self._kept = np.concatenate([self._kept, pcm.astype(np.float32, copy=False)])
        blocks = [np.zeros(0, np.float32)]
        while self._place(self._sent + BLOCK - 1) + self._half < self._start + len(self._kept):
            blocks.append(self._next_block())
        count = min(self._place(self._sent) + 1 - self._half - self._start, len(self._kept))
        self._kept, self._start = self._kept[count:], self._start + count
        return np.concatenate(blocks)

    def _place(self, output: int) -> int:
        """Return the input sample at or before an output sample."""
        return output * self._ratio.numerator // self._ratio.denominator

    def _next_block(self) -> np.ndarray:
        steps = np.arange(self._sent, self._sent + BLOCK) * self._ratio.numerator
        places, phases = np.divmod(steps, self._ratio.denominator)
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, 2 * self._half)
        taken = windows[places + 1 - self._half - self._start]
        self._sent += BLOCK
        return (taken * self._filters[phases]).sum(axis=1, dtype=np.float32)


def _filters(ratio: Fraction, half: int) -> np.ndarray:
    """Return a low-pass filter for every phase, `[phases, 2 · half]`: it cuts off above the lower of both rates."""
    phase = np.arange(ratio.denominator)[:, None] / ratio.denominator
    distance = np.arange(1 - half, half + 1) - phase
    cut = min(1.0, 1 / float(ratio))
    window = np.i0(SHAPE * np.sqrt(np.maximum(0.0, 1 - (distance / half) ** 2))) / np.i0(SHAPE)
    taps = np.sinc(cut * distance) * window
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
