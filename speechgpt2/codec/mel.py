"""Causal log-mel features, 100 steps per second, as in the released codec."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt2.codec.config import MelConfig
from speechgpt2.nn.conv import EdgeTail
from speechgpt2.types import SAMPLE_RATE

FLOOR = 1e-10  # of squared magnitudes and of mel energies
AUDIBLE = 1e-3  # of mel magnitudes, some 55 dB below a loud vowel; 750 bit/s should not be spent on less


class Mel(nn.Module):
    """`pcm [B, N]` -> `[B, ⌊N / hop⌋, bins]`, natural logarithm, normalised by the configured mean and deviation.

    Step t sees the window that ends with sample hop·(t + 1). The first sample is repeated before the start. In a stream
    all chunks but the last are multiples of `hop`.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig):
        super().__init__()
        self.config = config
        self.past = config.window - config.hop
        self.register_buffer("window", torch.hann_window(config.window))
        self.register_buffer("filters", torch.from_numpy(slaney_filters(config.window, config.bins, SAMPLE_RATE)))

    def init_state(self, batch: int) -> EdgeTail:
        """Return the state of `batch` rows before any input."""
        return EdgeTail.empty(batch, 1, self.past, self.window)

    def forward(self, pcm: Tensor, state: EdgeTail | None = None) -> tuple[Tensor, EdgeTail]:
        """Process one chunk `[B, N]`."""
        x, state = (state or self.init_state(pcm.shape[0])).prepend(pcm[:, None])
        spectrum = torch.fft.rfft(x[:, 0].unfold(-1, self.config.window, self.config.hop) * self.window)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (power.clamp(min=FLOOR).sqrt() @ self.filters).clamp(min=FLOOR).log()
        return (log_mel - self.config.mean) / self.config.std, state


def log_mel(pcm: Tensor, hop: int, taper: Tensor, filters: Tensor) -> Tensor:
    """Compute log-mel magnitudes for losses: `pcm [B, N]` -> `[B, steps, bins]`. What is not `AUDIBLE` is silence.

    Args:
        pcm: Samples.
        hop: Samples between two windows.
        taper: The window, `[W]`.
        filters: `[W / 2 + 1, bins]`.
    """
    spectrum = torch.stft(pcm, len(taper), hop, window=taper, center=False, return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (magnitude.transpose(1, 2) @ filters).clamp(min=AUDIBLE).log()


def slaney_filters(n_fft: int, bins: int, sample_rate: int) -> np.ndarray:
    """Return triangular filters of equal area on Slaney's mel scale, `[n_fft / 2 + 1, bins]` float32."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(sample_rate / 2), bins + 2))
    frequency = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequency) / np.diff(edges)[1:]
    area = 2 / (edges[2:] - edges[:-2])
    return (np.maximum(0, np.minimum(rising, falling)) * area).astype(np.float32)


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Convert Hz to Slaney's mel scale (Auditory Toolbox, 1998): linear to 1 kHz, then logarithmic."""
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Convert Slaney's mel scale to Hz."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
