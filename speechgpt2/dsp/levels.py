"""The audible part of a recording, and its level."""

from __future__ import annotations

import numpy as np

from speechgpt2.types import SAMPLE_RATE

LEVEL_DBFS = -23.0  # RMS of the audible windows at gain 0
MARGIN = 0.05  # seconds of silence that are kept on both sides
HOP = SAMPLE_RATE // 100  # samples of a window: 10 ms


def active_span(pcm: np.ndarray, floor_db: float = -45.0) -> tuple[int, int] | None:
    """Find the audible part of a recording.

    Args:
        pcm: samples `[N]` at 24 kHz.
        floor_db: power relative to the loudest window, in dB, above which a window counts as audible.

    Returns:
        The first sample and the one after the last, with `MARGIN` on both sides; None for silence.
    """
    power = _window_power(pcm)
    if not len(power) or power.max() < 1e-8:
        return None
    loud = np.flatnonzero(power > power.max() * 10 ** (floor_db / 10))
    margin = int(MARGIN * SAMPLE_RATE)
    return max(0, int(loud[0]) * HOP - margin), min(len(pcm), int(loud[-1] + 1) * HOP + margin)


def normalise_level(pcm: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """Scale `pcm [N]` to `LEVEL_DBFS` + `gain` dB over its audible windows, with peaks below 0.95."""
    power = _window_power(pcm)
    speech = power[power > power.max() * 1e-3].mean()
    scale = 10 ** ((LEVEL_DBFS + gain) / 20) / np.sqrt(speech)
    return (pcm * min(scale, 0.95 / np.abs(pcm).max())).astype(np.float32)


def _window_power(pcm: np.ndarray) -> np.ndarray:
    """Mean power of every whole window, `[N / HOP]`."""
    return np.square(pcm[: len(pcm) // HOP * HOP].reshape(-1, HOP)).mean(axis=1)
