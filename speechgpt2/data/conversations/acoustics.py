"""The acoustics of a conversation: rooms, noise, telephone. Times stay exact."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import soxr

from speechgpt2.tts.augment import NOISE_DB, ROOM_SECONDS, add_noise, add_reverb
from speechgpt2.types import SAMPLE_RATE

TELEPHONE_RATE = 8000
TELEPHONE_BAND = (300.0, 3400.0)  # Hz (ITU-T G.712)
_MU = 255.0  # ITU-T G.711
_MAX_PEAK = 0.95


@dataclass(frozen=True)
class AcousticsConfig:
    """Probabilities of a telephone line, of rooms, and of noise. All are 0 by default."""

    telephone: float = 0.0
    room: float = 0.0
    noise: float = 0.0


def apply_acoustics(pcm: np.ndarray, config: AcousticsConfig, rng: random.Random) -> tuple[np.ndarray, list[str]]:
    """Apply randomly drawn acoustics to `pcm [2, N]`.

    Returns:
        The audio `[2, N]`, and the names of the effects that were applied.
    """
    noise = np.random.default_rng(rng.getrandbits(64))
    applied: list[str] = []
    channels = list(pcm)
    if rng.random() < config.room:
        channels = [
            add_reverb(channel, rng.uniform(*ROOM_SECONDS), rng.uniform(0.1, 0.6), noise) for channel in channels
        ]
        applied.append("room")
    if rng.random() < config.noise:
        channels = [add_noise(channel, rng.uniform(*NOISE_DB), rng.uniform(0, 1), noise) for channel in channels]
        applied.append("noise")
    if rng.random() < config.telephone:
        channels = [telephone(channel) for channel in channels]
        applied.append("telephone")
    both = np.stack(channels)
    return (both * min(1.0, _MAX_PEAK / max(float(np.abs(both).max()), 1e-6))).astype(np.float32), applied


def telephone(pcm: np.ndarray) -> np.ndarray:
    """Return `pcm [N]` as a telephone transmits it: 300–3,400 Hz, 8 kHz, 8-bit μ-law; same length, no delay."""
    spectrum = np.fft.rfft(pcm)
    hertz = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    edges = np.clip((hertz - TELEPHONE_BAND[0]) / 50 + 1, 0, 1) * np.clip((TELEPHONE_BAND[1] - hertz) / 200 + 1, 0, 1)
    narrow = soxr.resample(np.fft.irfft(spectrum * edges, len(pcm)), SAMPLE_RATE, TELEPHONE_RATE)
    coded = np.round(127 * np.sign(narrow) * np.log1p(_MU * np.minimum(np.abs(narrow), 1)) / np.log1p(_MU))
    decoded = np.sign(coded) * np.expm1(np.abs(coded) / 127 * np.log1p(_MU)) / _MU
    wide = soxr.resample(decoded, TELEPHONE_RATE, SAMPLE_RATE)
    fitted = np.zeros(len(pcm), np.float32)
    fitted[: min(len(pcm), len(wide))] = wide[: len(pcm)]
    return fitted
