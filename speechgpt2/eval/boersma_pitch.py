"""Pitch by autocorrelation (Boersma 1993), for the measures of pitch errors.

WORLD's DIO labels the training data. It looks for the fundamental, so it jumps an octave where a codec has weakened
the fundamental, although listeners hear the same pitch; Harvest jumps less often, but is 20 times as slow. An
autocorrelation finds the period with or without the fundamental. The evaluation also has to use another method than the
labels, because the codec learned from those.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from speechgpt2.types import SAMPLE_RATE

Wave = NDArray[np.floating]

STEP = 0.005  # seconds between two values
FLOOR, CEILING = 60.0, 500.0  # Hz

_RATE = 8_000  # enough for the harmonics that carry a pitch
_WINDOW = 400  # samples (50 ms): three periods at the floor
_FFT = 1024
_LAGS = np.arange(int(_RATE / CEILING), int(_RATE / FLOOR) + 1)
_VOICED = 0.45  # autocorrelation of a period that counts as voiced
_SILENCE = 0.03  # of the loudest amplitude: below it nothing is voiced
_OCTAVE_COST = 0.02  # per octave below the ceiling: of a period and its double the shorter one wins
_JUMP_COST = 0.35  # per octave between neighbours
_VOICING_COST = 0.14  # for a change between voiced and unvoiced


def track_pitch(pcm: Wave) -> NDArray[np.float64]:
    """Pitch `[F]` in Hz every 5 ms of `pcm [N]` at 24 kHz, 0 where unvoiced; value i is centred at 5·i ms."""
    signal = soxr.resample(np.asarray(pcm, dtype=np.float64), SAMPLE_RATE, _RATE)
    frames = _frames(signal)
    strength = _periodicity(frames)
    amplitude = np.abs(frames).max(axis=1) / max(float(np.abs(signal).max(initial=0.0)), 1e-9)
    # The quieter a frame is, the more periodic it must be to count as voiced.
    unvoiced = _VOICED + np.maximum(0.0, 2.0 - amplitude / _SILENCE)
    preference = strength - _OCTAVE_COST * np.log2(_LAGS * CEILING / _RATE)
    path = _best_path(preference, unvoiced)
    return np.array([_interpolated_pitch(strength[i], k) if k < len(_LAGS) else 0.0 for i, k in enumerate(path)])


def _frames(signal: Wave) -> Wave:
    """Windows [F, window], centred on the values of the track, each without its mean."""
    padded = np.pad(signal, (_WINDOW // 2, _WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[:: int(STEP * _RATE)]
    return frames - frames.mean(axis=1, keepdims=True)


def _periodicity(frames: Wave) -> Wave:
    """Normalised autocorrelation [F, lags], 1 for a perfect period: the frame's, divided by the window's."""
    window = np.hanning(_WINDOW + 2)[1:-1]
    spectrum = np.abs(np.fft.rfft(frames * window, _FFT)) ** 2
    correlation = np.fft.irfft(spectrum)
    shape = np.fft.irfft(np.abs(np.fft.rfft(window, _FFT)) ** 2)
    scale = correlation[:, :1] * shape[_LAGS] / shape[0]
    return np.clip(correlation[:, _LAGS] / np.maximum(scale, 1e-12), -1.0, 1.0)


def _best_path(preference: Wave, unvoiced: Wave) -> NDArray[np.intp]:
    """Viterbi path [F] through the voiced states [F, lags] and one unvoiced state (index `lags`)."""
    frames, lags = preference.shape
    octaves = np.log2(_LAGS)
    cost = np.full((lags + 1, lags + 1), _VOICING_COST)
    cost[:lags, :lags] = _JUMP_COST * np.abs(octaves[:, None] - octaves)
    cost[lags, lags] = 0.0
    gains = np.concatenate([preference, unvoiced[:, None]], axis=1)
    total, back = gains[0], np.zeros((frames, lags + 1), dtype=np.intp)
    for i in range(1, frames):
        choices = total[:, None] - cost
        back[i] = choices.argmax(axis=0)
        total = choices[back[i], np.arange(lags + 1)] + gains[i]
    path = np.zeros(frames, dtype=np.intp)
    path[-1] = total.argmax()
    for i in range(frames - 1, 0, -1):
        path[i - 1] = back[i, path[i]]
    return path


def _interpolated_pitch(strength: Wave, k: int) -> float:
    """The pitch in Hz of lag index `k`, by a parabola through it and its neighbours."""
    if not 0 < k < len(_LAGS) - 1:
        return _RATE / float(_LAGS[k])
    left, middle, right = strength[k - 1 : k + 2]
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return _RATE / float(_LAGS[k] + np.clip(offset, -0.5, 0.5))
