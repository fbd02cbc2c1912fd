"""Turn speech into a whisper, as a stream: noise takes the place of the voice, in the same spectral envelope.

Every frame's envelope is its cepstrum below the shortest period of a voice. Noise has the envelope's amplitudes and
random phases. A whisper has little below its first formant, so low frequencies are attenuated.
"""

from __future__ import annotations

import numpy as np

from speechgpt2.types import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # samples between two frames: 10 ms
SIZE = 512  # of the transform
FRAME = 2 * HOP
QUEFRENCIES = SAMPLE_RATE // 600  # samples: a voice below 600 Hz leaves no trace in the envelope
CORNER = 500.0  # Hz: frequencies below it are attenuated
SEED = 1
QUIET = 1e-9  # power of a bin at which the envelope ends
# The powers of two overlapping frames add up to 1.
WINDOW = np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME)
_HERTZ = np.fft.rfftfreq(SIZE, 1 / SAMPLE_RATE)
_TILT = _HERTZ / np.sqrt(_HERTZ**2 + CORNER**2)


class Whisperer:
    """Whispers a stream. It holds back at most a frame of 20 ms."""

    def __init__(self) -> None:
        self._kept = np.zeros(HOP, np.float32)  # input of frames that are not complete
        self._tail = np.zeros(HOP)  # of the last frame's output
        self._random = np.random.default_rng(SEED)
        self._received = self._sent = 0
        self._first = True

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Add the next `pcm [N]`; returns the output that is complete, float32."""
        self._received += len(pcm)
        return self._whisper(pcm)

    def finish(self) -> np.ndarray:
        """Return the rest. All output together is as long as the input."""
        left = self._received - self._sent
        return self._whisper(np.zeros(2 * FRAME, np.float32))[:left]

    def _whisper(self, pcm: np.ndarray) -> np.ndarray:
        kept = np.concatenate([self._kept, pcm.astype(np.float32, copy=False)])
        blocks = [np.zeros(0, np.float32)]
        count = max(0, (len(kept) - HOP) // HOP)
        for start in range(0, count * HOP, HOP):
            blocks.append(self._next_block(kept[start : start + FRAME]))
        self._kept = kept[count * HOP :]
        output = np.concatenate(blocks)
        self._sent += len(output)
        return output

    def _next_block(self, frame: np.ndarray) -> np.ndarray:
        """Add a frame; returns the output up to its middle."""
        noise = WINDOW * self._shaped_noise(WINDOW * frame)
        block, self._tail = self._tail + noise[:HOP], noise[HOP:]
        if self._first:  # its first half lies before the input
            self._first, block = False, block[:0]
        return block.astype(np.float32)

    def _shaped_noise(self, frame: np.ndarray) -> np.ndarray:
        """Return noise `[FRAME]` with the envelope and the power of a windowed frame."""
        phases = self._random.uniform(0, 2 * np.pi, SIZE // 2 + 1)
        power = np.abs(np.fft.rfft(frame, SIZE)) ** 2
        cepstrum = np.fft.irfft(np.log(power + QUIET))
        cepstrum[QUEFRENCIES : SIZE - QUEFRENCIES + 1] = 0
        envelope = np.exp(np.fft.rfft(cepstrum).real)
        # A smoothed logarithm is below the logarithm of the mean: the frame's own power is restored.
        envelope *= power.sum() / envelope.sum()
        spectrum = np.sqrt(envelope) * _TILT * np.exp(1j * phases)
        return np.fft.irfft(spectrum, SIZE)[:FRAME] * np.sqrt(SIZE / FRAME)
