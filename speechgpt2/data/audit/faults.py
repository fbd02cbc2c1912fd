"""Faults to plant into clean speech: noise, clipping, a second voice, music, a narrow band.

The audit plants them and counts which the filters find. Tests and augmentation may use them, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr

from speechgpt2.tts import augment
from speechgpt2.types import SAMPLE_RATE


def level_of(pcm: np.ndarray) -> float:
    """Return the RMS of the audible part of `pcm [N]`: the 10 ms windows within 30 dB of the loudest."""
    hop = SAMPLE_RATE // 100
    power = np.square(pcm[: len(pcm) // hop * hop].reshape(-1, hop)).mean(axis=1)
    return float(np.sqrt(power[power > power.max() * 1e-3].mean()))


def mixed(pcm: np.ndarray, other: np.ndarray, ratio: float) -> np.ndarray:
    """Mix `pcm [N]` with `other` (cut or repeated to its length), `ratio` dB below it."""
    fitted = np.resize(other, len(pcm)) * level_of(pcm) / level_of(other) * 10 ** (-ratio / 20)
    return limit_peak(pcm + fitted)


def limit_peak(pcm: np.ndarray) -> np.ndarray:
    """Scale the peak below full scale; returns float32."""
    return (pcm * min(1.0, 0.95 / max(float(np.abs(pcm).max()), 1e-6))).astype(np.float32)


def noisy(pcm: np.ndarray, ratio: float, slope: float, random: np.random.Generator) -> np.ndarray:
    """Add noise `ratio` dB below the speech; its spectrum falls with f^−slope."""
    noise = augment.add_noise(np.zeros_like(pcm) + 1e-3, -60.0, slope, random)
    return mixed(pcm, noise, ratio)


def clipped(pcm: np.ndarray, share: float) -> np.ndarray:
    """Clip the loudest `share` of the samples."""
    ceiling = float(np.quantile(np.abs(pcm), 1 - share))
    return limit_peak(np.clip(pcm, -ceiling, ceiling) * (0.9 / ceiling))


def narrow(pcm: np.ndarray, hertz: float) -> np.ndarray:
    """Limit the band, as if the recording had a sampling rate of 2 · `hertz`."""
    rate = round(2 * hertz)
    return limit_peak(soxr.resample(soxr.resample(pcm, SAMPLE_RATE, rate), rate, SAMPLE_RATE))


def tune(seconds: float, random: np.random.Generator) -> np.ndarray:
    """Compose random music: chords with a melody, of decaying or sustained tones, in a random key and tempo."""
    total = int(seconds * SAMPLE_RATE)
    pcm = np.zeros(total + SAMPLE_RATE)
    beat = random.uniform(0.3, 0.7)
    root, decay = 55 * 2 ** random.uniform(1, 2), random.choice([0.0, 1.5, 4.0])
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    for number in range(int(seconds / beat) + 1):
        chord: Any = scale[[[0, 2, 4], [3, 5, 7], [4, 6, 1], [5, 0, 2]][number // 2 % 4]] if number % 2 == 0 else []
        notes = [*(root * 2 ** (step / 12) for step in chord), root * 2 ** (1 + random.choice(scale) / 12)]
        length = beat * (2 if number % 2 == 0 else 1)
        _play(pcm, notes, int(number * beat * SAMPLE_RATE), length, decay, random)
    return limit_peak(pcm[:total])


def _play(
    pcm: np.ndarray, notes: list[float], start: int, length: float, decay: float, random: np.random.Generator
) -> None:
    time = np.arange(min(int(length * SAMPLE_RATE), max(0, len(pcm) - start))) / SAMPLE_RATE
    if not len(time):
        return
    envelope = np.minimum(1, time / 0.01) * np.minimum(1, (time[-1] - time) / 0.02 + 1e-3) * np.exp(-decay * time)
    for note in notes:
        for harmonic in range(1, 8):
            wave = np.sin(2 * np.pi * note * harmonic * time + random.uniform(0, 6.28))
            pcm[start : start + len(time)] += 0.1 / harmonic * wave * envelope


def retouched(pcm: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the recording as another site might publish it: other gain, slightly cut, through a coarser codec."""
    start, end = (int(random.uniform(0, 0.05) * SAMPLE_RATE) for _ in range(2))
    cut = pcm[start : len(pcm) - end]
    rough = narrow(cut, random.uniform(5000, 11_000))
    return limit_peak((rough + random.standard_normal(len(rough)) * 0.002 * level_of(rough)) * random.uniform(0.4, 1.5))
