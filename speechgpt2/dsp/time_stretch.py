"""Change the rate of speech without its pitch, as a stream.

Waveform-similarity overlap-add (Verhelst and Roelands, 1993): segments of the input are laid out at their new times
under overlapping windows. Each segment may move a little, to the place where it continues the one before it best, so
that periods of a voice are joined in phase.
"""

from __future__ import annotations

import numpy as np

from speechgpt2.types import SAMPLE_RATE

HALF = SAMPLE_RATE // 80  # samples of half a segment, and between two segments of the output: 12.5 ms
SEARCH = SAMPLE_RATE * 3 // 400  # samples by which a segment may move in either direction: 7.5 ms
REGION = HALF + 2 * SEARCH  # samples in which the first half of a segment is sought
RISE = (np.sin(np.pi / 2 * (np.arange(HALF) + 0.5) / HALF) ** 2).astype(np.float32)
# Of equally good places the nearest one wins, which matters in silence.
DISTANCE_COST = 1e-4 * np.abs(np.arange(2 * SEARCH + 1) - SEARCH) / SEARCH
QUIET = 1e-8  # energy that is added to that of a segment, so that silence is not divided by zero


class TimeStretcher:
    """Speeds up a stream by `rate`. It holds back at most `HALF + SEARCH + rate * HALF` samples of the input."""

    def __init__(self, rate: float):
        self.rate = rate
        self._start = -(HALF + SEARCH)  # position in the input of the first sample that is kept
        self._kept = np.zeros(HALF + SEARCH, np.float32)
        self._received = self._sent = 0
        self._segments = 0
        self._last = np.zeros(HALF, np.float32)  # the second half of the last segment, which the next one continues

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]`; returns the output that is complete, about `[N / rate]` float32."""
        self._received += len(pcm)
        return self._stretch(pcm)

    def finish(self) -> np.ndarray:
        """Return the rest. All output together has the length of the input divided by `rate`, rounded."""
        left = round(self._received / self.rate) - self._sent
        missing = int((left + 2 * HALF) * self.rate) + 2 * (HALF + SEARCH)
        return self._stretch(np.zeros(missing, np.float32))[:left]

    def _stretch(self, pcm: np.ndarray) -> np.ndarray:
        self._kept = np.concatenate([self._kept, pcm.astype(np.float32, copy=False)])
        blocks = [np.zeros(0, np.float32)]
        while (target := self._target()) + SEARCH + HALF <= self._start + len(self._kept):
            blocks.append(self._next_block(target))
        self._forget(self._target() - SEARCH - HALF)
        output = np.concatenate(blocks)
        self._sent += len(output)
        return output

    def _target(self) -> int:
        """Return where the middle of the next segment should be in the input."""
        return round(self._segments * HALF * self.rate)

    def _next_block(self, target: int) -> np.ndarray:
        """Add a segment; returns the output up to its middle."""
        middle = self._best_place(target) - self._start
        first, second = self._kept[middle - HALF : middle], self._kept[middle : middle + HALF]
        block = RISE * first + RISE[::-1] * self._last
        self._last, self._segments = second.copy(), self._segments + 1
        return block if self._segments > 1 else block[:0]  # the first middle is the beginning of the output

    def _best_place(self, target: int) -> int:
        """Return the middle of the segment near `target` whose first half is most like the end of the last one."""
        if not self._segments:
            return target
        begin = target - SEARCH - HALF - self._start
        region = self._kept[begin : begin + REGION].astype(np.float64)
        product = np.fft.rfft(region) * np.conj(np.fft.rfft(self._last, REGION))
        similarity = np.fft.irfft(product, REGION)[: 2 * SEARCH + 1]
        energy = np.concatenate([[0.0], np.cumsum(region * region)])
        energies = energy[HALF:] - energy[:-HALF]
        own = float(np.square(self._last, dtype=np.float64).sum())
        scale = np.sqrt((energies + QUIET) * (own + QUIET))
        return target + int(np.argmax(similarity / scale - DISTANCE_COST)) - SEARCH

    def _forget(self, position: int) -> None:
        """Drop the input before `position`."""
        count = min(max(0, position - self._start), len(self._kept))
        self._kept, self._start = self._kept[count:], self._start + count
