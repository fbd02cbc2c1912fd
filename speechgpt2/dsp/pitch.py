"""Fundamental frequency at some hundred times real time, for labels of whole corpora.

Autocorrelation (Boersma 1993): each frame offers its few best periods, and the path through them with the fewest jumps
wins. `data.pitch`, which training reads its targets from, follows each period more closely, but is five times slower,
needs a compiler to install, and loses the voice in noise (audit.py has the table).
"""

from __future__ import annotations

import numpy as np
import soxr

from speechgpt2.dsp.spectrum import FRAMES, fft, squared
from speechgpt2.types import SAMPLE_RATE

FLOOR, CEILING = 60.0, 500.0  # Hz
RATE = 8_000  # enough for the harmonics that carry a pitch
HOP = RATE // FRAMES
WINDOW, SIZE = 400, 540  # samples: three periods at the floor; of the transform, in which no lag in use folds back
LAGS = np.arange(int(RATE / CEILING), int(RATE / FLOOR) + 2)
OFFERS = 4  # periods of a frame
VOICED = 0.45  # autocorrelation of a period
FAINT = 0.03  # of the loudest amplitude: quieter frames must be the more periodic
OCTAVE_COST = 0.03  # of a period per octave: of one and its double the shorter wins
JUMP_COST, VOICING_COST = 0.35, 0.14  # per octave between frames; for beginning or ending


def track(pcm: np.ndarray) -> np.ndarray:
    """F0 in Hz `[T]` every 10 ms of `pcm [N]` at 24 kHz, 0 where unvoiced; value t is centred at 10·t ms."""
    signal = soxr.resample(np.asarray(pcm, np.float32), SAMPLE_RATE, RATE, quality="MQ")
    padded = np.pad(signal, (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    strength = _periodicity(frames)
    loudest = max(float(np.abs(signal).max(initial=0.0)), 1e-9)
    unvoiced = VOICED + np.maximum(0.0, 2.0 - np.abs(frames).max(axis=1) / loudest / FAINT)
    hertz, gain = _offers(strength)
    chosen = _smoothest(np.log2(hertz), np.concatenate([gain, unvoiced[:, None]], axis=1))
    rows = np.flatnonzero(chosen < OFFERS)
    found = np.zeros(len(frames))
    found[rows] = hertz[rows, chosen[rows]]
    return found


def _periodicity(frames: np.ndarray) -> np.ndarray:
    """Autocorrelation `[T, LAGS]`, 1 for a perfect period: that of the windowed frame over that of the window."""
    window = np.hanning(WINDOW + 2)[1:-1].astype(np.float32)
    correlation = fft.irfft(squared(fft.rfft(frames * window, SIZE)), SIZE)
    shape = fft.irfft(squared(fft.rfft(window, SIZE)), SIZE)
    scale = correlation[:, :1] * (shape[LAGS] / shape[0])
    return np.clip(correlation[:, LAGS] / np.maximum(scale, 1e-12), -1.0, 1.0)


def _offers(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best peaks of every frame: their Hz and what they are worth, both `[T, OFFERS]`."""
    left, middle, right = strength[:, :-2], strength[:, 1:-1], strength[:, 2:]
    peak = (middle > left) & (middle >= right)
    worth = np.where(peak, middle - OCTAVE_COST * np.log2(LAGS[1:-1] / LAGS[0]), -2.0)
    best = np.argpartition(-worth, OFFERS, axis=1)[:, :OFFERS]
    rows = np.arange(len(strength))[:, None]
    bend = left[rows, best] - 2 * middle[rows, best] + right[rows, best]
    shift = 0.5 * (left[rows, best] - right[rows, best]) / np.where(bend < 0, bend, -1.0)  # top of a parabola
    return RATE / (LAGS[1:-1][best] + np.clip(shift, -0.5, 0.5)), worth[rows, best]


def _smoothest(octaves: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Viterbi's path `[T]` through the offers `octaves [T, OFFERS]` and, as the last state of `gains`, no voice."""
    costs = np.full((len(gains), OFFERS + 1, OFFERS + 1), VOICING_COST)
    costs[1:, :OFFERS, :OFFERS] = JUMP_COST * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])
    costs[:, OFFERS, OFFERS] = 0.0
    total, came = gains[0], np.zeros(gains.shape, np.intp)
    for step in range(1, len(gains)):
        choices = total[:, None] - costs[step]
        came[step] = choices.argmax(axis=0)
        total = choices.max(axis=0) + gains[step]
    path = np.empty(len(gains), np.intp)
    path[-1] = total.argmax()
    for step in range(len(gains) - 1, 0, -1):
        path[step - 1] = came[step, path[step]]
    return path
