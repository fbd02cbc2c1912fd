"""Causal log-mel features: 24 kHz samples to 100 steps per second, as the released codec hears them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt2.codec.config import MelConfig
from speechgpt2.nn.conv import EdgeTail
from speechgpt2.types import SAMPLE_RATE

FLOOR = 1e-10  # of squared magnitudes and of mel energies
AUDIBLE = 1e-3  # of mel magnitudes, some 55 dB below a loud vowel: what is quieter is not worth bits of 750


class Mel(nn.Module):
    """`pcm [B, N] -> [B, ⌊N / hop⌋, bins]`, natural logarithm, normalised by the configured mean and deviation.

    Step t sees the window that ends with sample hop·(t + 1); before the first sample stands the first sample,
    repeated. In a stream all chunks but the last are multiples of `hop`.
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
        return EdgeTail.empty(batch, 1, self.past, self.window)

    def forward(self, pcm: Tensor, state: EdgeTail | None = None) -> tuple[Tensor, EdgeTail]:
        x, state = (state or self.init_state(pcm.shape[0])).prepend(pcm[:, None])
        spectrum = torch.fft.rfft(x[:, 0].unfold(-1, self.config.window, self.config.hop) * self.window)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (power.clamp(min=FLOOR).sqrt() @ self.filters).clamp(min=FLOOR).log()
        return (log_mel - self.config.mean) / self.config.std, state


def log_mel(pcm: Tensor, hop: int, taper: Tensor, filters: Tensor) -> Tensor:
    """Logarithms of mel magnitudes, `pcm [B, N] -> [B, steps, bins]`, of windows `taper [W]` that are `hop` apart.

    For training: what is not `AUDIBLE` counts as silence, and no future is kept from anybody.
    """
    spectrum = torch.stft(pcm, len(taper), hop, window=taper, center=False, return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (magnitude.transpose(1, 2) @ filters).clamp(min=AUDIBLE).log()


def slaney_filters(n_fft: int, bins: int, sample_rate: int) -> np.ndarray:
    """Triangular filters of equal area on Slaney's mel scale, `[n_fft / 2 + 1, bins]` float32, up to half the rate."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(sample_rate / 2), bins + 2))
    frequency = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequency) / np.diff(edges)[1:]
    area = 2 / (edges[2:] - edges[:-2])
    return (np.maximum(0, np.minimum(rising, falling)) * area).astype(np.float32)


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Slaney's scale (Auditory Toolbox, 1998): linear to 1 kHz (15 mel), above it 27 mel for each factor of 6.4."""
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
