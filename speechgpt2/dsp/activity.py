"""Where somebody speaks: an estimate for every 10 ms, by energy or by a model, and the spans that follow from it.

`Activity` is the interface: pcm in, [T] between 0 (no speech) and 1 out. The energy detector tells sound from silence
and hum, not speech from music; `silero` is a model that knows speech (onnxruntime; its weights come with the package).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from speechgpt2 import audio, vad
from speechgpt2.dsp.spectrum import FRAMES, HERTZ, HOP, decibels, power
from speechgpt2.types import SAMPLE_RATE

Activity = Callable[[Iterator[np.ndarray]], np.ndarray]  # blocks [N] of one recording -> [T]
Detector = Literal["energy", "silero"]

LOW, HIGH = 100.0, 4000.0  # Hz: where voices are
ABOVE_FLOOR = 9.0  # dB by which speech rises above the background
BELOW_SPEECH = 32.0  # dB below the loud parts, where speech ends
QUIETEST = -66.0  # dBFS of a frame in the band
SMOOTH = 5  # frames
SPEECH = 0.5


def energy(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """By the level in the band of voices, against the background's and the voices' own."""
    parts = [_levels(power(block), len(block)) for block in blocks]
    return _above(np.concatenate(parts)) if parts else np.zeros(0)


def energy_from_power(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """`energy` of one block of `samples` samples, from its power `[T, BINS]`."""
    return _above(_levels(spectrum, samples))


def _levels(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """dB in the band of voices, of each frame of power `[T, BINS]` that so many samples have."""
    first, last = round(LOW / HERTZ), round(HIGH / HERTZ)
    return decibels(spectrum[: max(1, samples // HOP), first:last].sum(axis=1))


def _above(levels: np.ndarray) -> np.ndarray:
    if not len(levels):
        return levels
    floor, loud = np.percentile(levels, 8), np.percentile(levels, 97)
    # Speech without a pause has no background to rise above; then what is far below its loud parts is no speech.
    threshold = max(min(floor + ABOVE_FLOOR, loud - 12.0), loud - BELOW_SPEECH, QUIETEST)
    smooth = np.convolve(levels, np.ones(SMOOTH) / SMOOTH, "same") if len(levels) >= SMOOTH else levels
    return 1 / (1 + np.exp(-np.clip(smooth - threshold, -30, 30) / 2))


def silero(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """By the network of `speechgpt2.vad`. Errors: `UserError` if onnxruntime is not installed."""
    network, said, samples = vad.SileroVad(), [], 0
    cutter, resampler = audio.Blocks(vad.VAD_BLOCK), audio.Resampler(SAMPLE_RATE, vad.VAD_SAMPLE_RATE)
    for block in blocks:
        samples += len(block)
        said += [network.probability(piece) for piece in cutter.push(resampler.push(block))]
    last = np.concatenate([cutter.rest(), resampler.push(np.zeros(0, np.float32), final=True)])
    said.append(network.probability(np.pad(last, (0, max(0, vad.VAD_BLOCK - len(last))))[: vad.VAD_BLOCK]))
    times = (np.arange(samples // HOP) + 0.5) / FRAMES  # from blocks of 32 ms to frames of 10 ms
    return np.array(said)[np.minimum((times * vad.VAD_SAMPLE_RATE / vad.VAD_BLOCK).astype(int), len(said) - 1)]


def spans(activity: np.ndarray, gap: float, shortest: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of what is spoken: pauses up to `gap` are bridged, then what is shorter dropped."""
    active = np.concatenate([[False], activity >= SPEECH, [False]])
    edges = np.flatnonzero(active[1:] != active[:-1]) / FRAMES
    merged: list[tuple[float, float]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return [(start, end) for start, end in merged if end - start >= shortest]
