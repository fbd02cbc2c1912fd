"""Sounds that are not speech: silence, noise, hum, knocks and melodies. A model must not answer them as questions.

All are mono float64 at 24 kHz, `[N]`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from speechgpt2.types import SAMPLE_RATE

SECONDS = (0.8, 4.0)
_SCALE = (0, 2, 4, 7, 9, 12)  # semitones of a pentatonic scale
_LEVELS = (-50.0, -12.0)  # dB of the root mean square, relative to full scale


def draw_sound(rng: random.Random) -> np.ndarray:
    """Draw a sound of one of `KINDS`, of random length and level."""
    length = int(rng.uniform(*SECONDS) * SAMPLE_RATE)
    return KINDS[rng.choice(list(KINDS))](length, np.random.default_rng(rng.getrandbits(64)))


def silence(length: int, random: np.random.Generator) -> np.ndarray:
    """Return the faint noise of a quiet room."""
    return _at_level(random.standard_normal(length), random.uniform(-85, -65))


def noise(length: int, random: np.random.Generator) -> np.ndarray:
    """Return noise whose spectrum falls with a random slope, white to brown, and whose level wanders."""
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 40.0)
    pcm = np.fft.irfft(np.fft.rfft(random.standard_normal(length)) * frequency ** -random.uniform(0, 1), length)
    return _at_level(pcm * _wandering(length, random), random.uniform(*_LEVELS))


def hum(length: int, random: np.random.Generator) -> np.ndarray:
    """Return a steady tone with harmonics, as of an engine or a fan."""
    time, lowest = np.arange(length) / SAMPLE_RATE, random.uniform(40, 400)
    partials = [random.uniform(0, 1) / n * np.sin(2 * np.pi * n * lowest * time) for n in range(1, 9)]
    return _at_level(np.sum(partials, axis=0) * _wandering(length, random), random.uniform(*_LEVELS))


def knocks(length: int, random: np.random.Generator) -> np.ndarray:
    """Return short bursts, as of steps, keys or a door."""
    pcm = np.zeros(length)
    for start in random.integers(0, length, random.integers(1, 12)):
        count = min(length - start, int(random.uniform(0.01, 0.12) * SAMPLE_RATE))
        decay = np.exp(-np.arange(count) / (count / 5))
        pcm[start : start + count] += decay * random.standard_normal(count) * random.uniform(0.3, 1)
    return _at_level(pcm, random.uniform(*_LEVELS) - 6)


def melody(length: int, random: np.random.Generator) -> np.ndarray:
    """Return notes of a pentatonic scale by a random instrument, sometimes with a lower voice."""
    pcm, beat = np.zeros(length), int(random.uniform(0.15, 0.5) * SAMPLE_RATE)
    loudness = random.uniform(0, 1, 6) / np.arange(1, 7)
    for base in (random.uniform(160, 520), 110.0)[: random.integers(1, 3)]:
        for start in range(0, length, beat):
            count = min(length - start, int(1.5 * beat))
            pitch = base * 2 ** (random.choice(_SCALE) / 12)
            time = np.arange(count) / SAMPLE_RATE
            note = sum(level * np.sin(2 * np.pi * n * pitch * time) for n, level in enumerate(loudness, 1))
            pcm[start : start + count] += note * np.minimum(1, time / 0.01) * np.exp(-time / random.uniform(0.1, 0.8))
    return _at_level(pcm, random.uniform(-35, -12))


KINDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "silence": silence,
    "noise": noise,
    "hum": hum,
    "knocks": knocks,
    "melody": melody,
}


def _wandering(length: int, random: np.random.Generator) -> np.ndarray:
    """Return a slowly changing factor, `[N]`."""
    points = random.uniform(0.2, 1, max(2, length // SAMPLE_RATE * 3))
    return np.interp(np.linspace(0, len(points) - 1, length), np.arange(len(points)), points)


def _at_level(pcm: np.ndarray, level: float) -> np.ndarray:
    """Return the sound with the root mean square `level` dB, and no sample above 1."""
    scaled = pcm * (10 ** (level / 20) / max(float(np.sqrt(np.square(pcm).mean())), 1e-12))
    return scaled / max(1.0, float(np.abs(scaled).max()))
