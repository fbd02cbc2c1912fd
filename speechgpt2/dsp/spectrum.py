"""Short-time spectra, mel bands and cepstra.

A frame is 512 samples (21 ms) under a Hann window, one every 10 ms. The transforms are scipy's: they are some five
times as fast as numpy's.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

try:
    from scipy import fft
except ModuleNotFoundError:
    raise UserError("measuring audio needs scipy: pip install 'speechgpt2[data]'") from None

SIZE, HOP = 512, 240
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
BINS = SIZE // 2 + 1
BIN_HERTZ = SAMPLE_RATE / SIZE  # between two bins
QUIETEST = 1e-10  # power: −100 dBFS, the lowest level that is measured


def power(pcm: np.ndarray, size: int = SIZE, hop: int = HOP, bins: slice = slice(None)) -> np.ndarray:
    """Return the power per frame and bin of `pcm [N]`, `[T, size / 2 + 1]` float32.

    A full-scale sine has about 1/4 in its bin.

    Args:
        pcm: samples at 24 kHz.
        size: samples of a frame.
        hop: samples between two frames.
        bins: return these bins only.
    """
    if len(pcm) < size:
        pcm = np.pad(pcm, (0, size - len(pcm)))
    frames = np.lib.stride_tricks.sliding_window_view(pcm, size)[::hop]
    window = np.hanning(size + 1)[:size].astype(np.float32)
    return squared(fft.rfft(frames * window, axis=1)[:, bins]) / np.square(window.sum())


def squared(spectrum: np.ndarray) -> np.ndarray:
    """Return |z|² of complex numbers, without the square root that `abs` takes."""
    return np.square(spectrum.real) + np.square(spectrum.imag)


def decibels(values: np.ndarray) -> np.ndarray:
    """Convert power to dB, with −100 dB as the lowest value."""
    return 10 * np.log10(np.maximum(values, QUIETEST))


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Convert Hz to mel."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@cache
def mel_bands(count: int, low: float, high: float) -> np.ndarray:
    """Triangular filters `[BINS, count]` whose corners are equally spaced on the mel scale."""
    corners = 700 * (10 ** (np.linspace(mel(low), mel(high), count + 2) / 2595) - 1)
    bins = np.arange(BINS)[:, None] * BIN_HERTZ
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _cosines(count: int, coefficients: int) -> np.ndarray:
    angles = np.pi / count * (np.arange(count)[:, None] + 0.5) * np.arange(1, coefficients + 1)
    return (np.cos(angles) * np.sqrt(2 / count)).astype(np.float32)


def cepstra(spectrum: np.ndarray, coefficients: int = 13, bands: int = 26, high: float = 7600.0) -> np.ndarray:
    """Mel cepstra `[T, coefficients]` of power `[T, BINS]`, without the coefficient of the level."""
    return decibels(spectrum @ mel_bands(bands, 80.0, high)) @ _cosines(bands, coefficients)
