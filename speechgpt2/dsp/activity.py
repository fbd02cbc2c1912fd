"""Voice activity: the probability of speech in every 10 ms, by energy or by a network, and the spans of speech.

An `ActivityDetector` takes pcm and returns [T] between 0 (no speech) and 1. The energy detector distinguishes audio
from silence and hum, but not speech from music. `silero_activity` is a network that does (it needs onnxruntime; its
weights come with the package).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from speechgpt2 import audio, vad
from speechgpt2.dsp.spectrum import BIN_HERTZ, FRAMES_PER_SECOND, HOP, decibels, power
from speechgpt2.types import SAMPLE_RATE

ActivityDetector = Callable[[Iterator[np.ndarray]], np.ndarray]  # blocks [N] of one recording -> [T]
Detector = Literal["energy", "silero"]

LOW, HIGH = 100.0, 4000.0  # Hz: the band of voices
ABOVE_FLOOR = 9.0  # dB by which speech rises above the background
BELOW_SPEECH = 32.0  # dB below the loud parts, where speech ends
QUIETEST = -66.0  # dBFS in the band: a quieter frame holds no speech
SMOOTH = 5  # frames
SPEECH_THRESHOLD = 0.5


def energy_activity(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Estimate activity from the level in the band of voices, relative to the background and to the loud parts.

    Args:
        blocks: consecutive blocks `[N]` of one recording at 24 kHz.

    Returns:
        The activity of every 10 ms, `[T]` in 0…1.
    """
    levels = [_levels(power(block), len(block)) for block in blocks]
    return _activity_of_levels(np.concatenate(levels)) if levels else np.zeros(0)


def energy_activity_of_power(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """Estimate activity as `energy_activity` does, from the power `[T, BINS]` of one block of `samples` samples."""
    return _activity_of_levels(_levels(spectrum, samples))


def _levels(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """Return the dB in the band of voices for every whole frame of `samples` samples, from their power `[T, BINS]`."""
    first, end = round(LOW / BIN_HERTZ), round(HIGH / BIN_HERTZ)
    return decibels(spectrum[: max(1, samples // HOP), first:end].sum(axis=1))


def _activity_of_levels(levels: np.ndarray) -> np.ndarray:
    """Return the activity `[T]` from levels `[T]` in dB."""
    if not len(levels):
        return levels
    floor, loud = np.percentile(levels, 8), np.percentile(levels, 97)
    # In speech without a pause there is no background to compare with. Then the threshold follows the loud parts.
    threshold = max(min(floor + ABOVE_FLOOR, loud - 12.0), loud - BELOW_SPEECH, QUIETEST)
    smooth = np.convolve(levels, np.ones(SMOOTH) / SMOOTH, "same") if len(levels) >= SMOOTH else levels
    return 1 / (1 + np.exp(-np.clip(smooth - threshold, -30, 30) / 2))


def silero_activity(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Estimate activity with the network of `speechgpt2.vad`, like `energy_activity`.

    Raises:
        MissingDependency: onnxruntime is not installed.
    """
    detector, probabilities, samples = vad.SileroVad(), [], 0
    cutter, resampler = audio.Blocks(vad.VAD_BLOCK), audio.Resampler(SAMPLE_RATE, vad.VAD_SAMPLE_RATE)
    for block in blocks:
        samples += len(block)
        probabilities += [detector.probability(vad_block) for vad_block in cutter.push(resampler.push(block))]
    last = np.concatenate([cutter.rest(), resampler.push(np.zeros(0, np.float32), final=True)])
    probabilities.append(detector.probability(np.pad(last, (0, max(0, vad.VAD_BLOCK - len(last))))[: vad.VAD_BLOCK]))
    times = (np.arange(samples // HOP) + 0.5) / FRAMES_PER_SECOND  # from blocks of 32 ms to frames of 10 ms
    indices = (times * vad.VAD_SAMPLE_RATE / vad.VAD_BLOCK).astype(int)
    return np.array(probabilities)[np.minimum(indices, len(probabilities) - 1)]


def active_spans(activity: np.ndarray, gap: float, shortest: float) -> list[tuple[float, float]]:
    """Return (start, end) of speech in seconds.

    Pauses up to `gap` are bridged; then spans below `shortest` are dropped.
    """
    active = np.concatenate([[False], activity >= SPEECH_THRESHOLD, [False]])
    edges = np.flatnonzero(active[1:] != active[:-1]) / FRAMES_PER_SECOND
    merged: list[tuple[float, float]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return [(start, end) for start, end in merged if end - start >= shortest]
