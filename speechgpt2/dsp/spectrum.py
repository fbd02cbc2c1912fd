"""Short-time spectra, mel bands, cepstra: what the measures stand on.

Transforms are scipy's, which takes several frames in one instruction: some five times as fast as numpy's.

A frame is 512 samples (21 ms) under a Hann window, one every 10 ms.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

try:
    from scipy import fft
except ModuleNotFoundError:
    raise UserError("measuring sound needs scipy: pip install 'speechgpt2[data]'") from None

SIZE, HOP = 512, 240
FRAMES = SAMPLE_RATE // HOP  # per second
BINS = SIZE // 2 + 1
HERTZ = SAMPLE_RATE / SIZE  # between two bins
QUIETEST = 1e-10  # power below which nothing is told apart: −100 dBFS


def power(pcm: np.ndarray, size: int = SIZE, hop: int = HOP, bins: slice = slice(None)) -> np.ndarray:
    """`pcm [N]` -> power per frame and bin `[T, size / 2 + 1]` float32, or of some `bins` only; a full-scale sine has
    about 1/4 in its bin."""
    if len(pcm) < size:
        pcm = np.pad(pcm, (0, size - len(pcm)))
    frames = np.lib.stride_tricks.sliding_window_view(pcm, size)[::hop]
    window = np.hanning(size + 1)[:size].astype(np.float32)
    return squared(fft.rfft(frames * window, axis=1)[:, bins]) / np.square(window.sum())


def squared(spectrum: np.ndarray) -> np.ndarray:
    """|z|² of complex numbers, without the root that `abs` takes."""
    return np.square(spectrum.real) + np.square(spectrum.imag)


def decibels(values: np.ndarray) -> np.ndarray:
    """Power -> dB, from −100 dB up."""
    return 10 * np.log10(np.maximum(values, QUIETEST))


def mel(hertz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@cache
def mel_bands(count: int, low: float, high: float) -> np.ndarray:
    """Triangles `[BINS, count]` whose corners are equally spaced on the mel scale."""
    corners = 700 * (10 ** (np.linspace(mel(low), mel(high), count + 2) / 2595) - 1)
    bins = np.arange(BINS)[:, None] * HERTZ
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _cosines(count: int, coefficients: int) -> np.ndarray:
    angles = np.pi / count * (np.arange(count)[:, None] + 0.5) * np.arange(1, coefficients + 1)
    return (np.cos(angles) * np.sqrt(2 / count)).astype(np.float32)


def cepstra(spectrum: np.ndarray, coefficients: int = 13, bands: int = 26, high: float = 7600.0) -> np.ndarray:
    """Mel cepstra `[T, coefficients]` of power `[T, BINS]`, without the one that is the level."""
    return decibels(spectrum @ mel_bands(bands, 80.0, high)) @ _cosines(bands, coefficients)
