"""Fundamental frequency by autocorrelation, some hundred times faster than real time, for labels of whole corpora.

The method is that of Boersma 1993 ("Accurate short-term analysis of the fundamental frequency"): each frame has a few
candidate periods, and the Viterbi path with the fewest jumps is chosen. `dsp.world_pitch`, which training uses, follows
each period more closely. But it is five times slower, needs a compiler to install, and fails in noise (table in
docs/data.md).
"""

from __future__ import annotations

import numpy as np
import soxr

from speechgpt2.dsp.spectrum import FRAMES_PER_SECOND, fft, squared
from speechgpt2.types import SAMPLE_RATE

FLOOR, CEILING = 60.0, 500.0  # Hz
RATE = 8_000  # enough for the harmonics that carry a pitch
HOP = RATE // FRAMES_PER_SECOND
WINDOW, SIZE = 400, 540  # samples: three periods at the floor; of the transform, large enough for the lags in use
LAGS = np.arange(int(RATE / CEILING), int(RATE / FLOOR) + 2)
CANDIDATES = 4  # periods of a frame
VOICED = 0.45  # autocorrelation from which a period counts
FAINT = 0.03  # of the loudest amplitude: quieter frames must be more periodic
OCTAVE_COST = 0.03  # of a period per octave: the shorter of two periods an octave apart wins
JUMP_COST, VOICING_COST = 0.35, 0.14  # per octave between frames; of a change between voiced and unvoiced


def track_pitch(pcm: np.ndarray) -> np.ndarray:
    """Return F0 in Hz, `[T]` every 10 ms of `pcm [N]` at 24 kHz. Value t is centred at 10·t ms; 0 means unvoiced."""
    signal = soxr.resample(np.asarray(pcm, np.float32), SAMPLE_RATE, RATE, quality="MQ")
    padded = np.pad(signal, (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    strength = _periodicity(frames)
    loudest = max(float(np.abs(signal).max(initial=0.0)), 1e-9)
    unvoiced = VOICED + np.maximum(0.0, 2.0 - np.abs(frames).max(axis=1) / loudest / FAINT)
    hertz, gain = _candidates(strength)
    states = _smoothest(np.log2(hertz), np.concatenate([gain, unvoiced[:, None]], axis=1))
    voiced = np.flatnonzero(states < CANDIDATES)
    track = np.zeros(len(frames))
    track[voiced] = hertz[voiced, states[voiced]]
    return track


def _periodicity(frames: np.ndarray) -> np.ndarray:
    """Return the normalised autocorrelation `[T, LAGS]`: that of the windowed frame over that of the window.

    It is 1 for a perfect period.
    """
    window = np.hanning(WINDOW + 2)[1:-1].astype(np.float32)
    correlation = fft.irfft(squared(fft.rfft(frames * window, SIZE)), SIZE)
    shape = fft.irfft(squared(fft.rfft(window, SIZE)), SIZE)
    scale = correlation[:, :1] * (shape[LAGS] / shape[0])
    return np.clip(correlation[:, LAGS] / np.maximum(scale, 1e-12), -1.0, 1.0)


def _candidates(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best peaks of every frame: their frequency in Hz and their score, both `[T, CANDIDATES]`."""
    left, middle, right = strength[:, :-2], strength[:, 1:-1], strength[:, 2:]
    peak = (middle > left) & (middle >= right)
    score = np.where(peak, middle - OCTAVE_COST * np.log2(LAGS[1:-1] / LAGS[0]), -2.0)
    best = np.argpartition(-score, CANDIDATES, axis=1)[:, :CANDIDATES]
    rows = np.arange(len(strength))[:, None]
    bend = left[rows, best] - 2 * middle[rows, best] + right[rows, best]
    # The vertex of the parabola through three points.
    shift = 0.5 * (left[rows, best] - right[rows, best]) / np.where(bend < 0, bend, -1.0)
    return RATE / (LAGS[1:-1][best] + np.clip(shift, -0.5, 0.5)), score[rows, best]


def _smoothest(octaves: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Viterbi path `[T]` through the candidates `octaves [T, CANDIDATES]`; the last state of `gains` is "unvoiced"."""
    costs = np.full((len(gains), CANDIDATES + 1, CANDIDATES + 1), VOICING_COST)
    costs[1:, :CANDIDATES, :CANDIDATES] = JUMP_COST * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])
    costs[:, CANDIDATES, CANDIDATES] = 0.0
    total, previous = gains[0], np.zeros(gains.shape, np.intp)
    for step in range(1, len(gains)):
        choices = total[:, None] - costs[step]
        previous[step] = choices.argmax(axis=0)
        total = choices.max(axis=0) + gains[step]
    path = np.empty(len(gains), np.intp)
    path[-1] = total.argmax()
    for step in range(len(gains) - 1, 0, -1):
        path[step - 1] = previous[step, path[step]]
    return path
