"""Where somebody speaks: an estimate for every 10 ms, by energy or by a model, and the spans that follow from it.

`Activity` is the interface: pcm in, [T] between 0 (no speech) and 1 out. The energy detector tells sound from silence
and hum, not speech from music; `silero` is a model that knows speech (onnxruntime; its weights come with the package).
`dialogue.vad` runs the same network live, a block at a time with its level; rooms of data and dialogue do not know each
other, and what the two would share is a few lines around one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from speechgpt2 import audio, hub
from speechgpt2.data.clean.spectrum import FRAMES, HERTZ, HOP, decibels, power
from speechgpt2.errors import UserError
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
    levels = _levels(blocks)
    if not len(levels):
        return levels
    floor, loud = np.percentile(levels, 8), np.percentile(levels, 97)
    # Speech without a pause has no background to rise above; then what is far below its loud parts is no speech.
    threshold = max(min(floor + ABOVE_FLOOR, loud - 12.0), loud - BELOW_SPEECH, QUIETEST)
    smooth = np.convolve(levels, np.ones(SMOOTH) / SMOOTH, "same") if len(levels) >= SMOOTH else levels
    return 1 / (1 + np.exp(-np.clip(smooth - threshold, -30, 30) / 2))


def _levels(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """dB of each frame in the band of voices."""
    first, last = round(LOW / HERTZ), round(HIGH / HERTZ)
    parts = [decibels(power(block)[: max(1, len(block) // HOP), first:last].sum(axis=1)) for block in blocks]
    return np.concatenate(parts) if parts else np.zeros(0)


class Silero:
    """Silero VAD 5 (MIT), 32 ms at a time, on onnxruntime."""

    STEP, CONTEXT, RATE = 512, 64, 16_000

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError("the silero detector needs onnxruntime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(hub.ASSETS / "silero_vad.onnx"), options)

    def __call__(self, blocks: Iterator[np.ndarray]) -> np.ndarray:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros(self.CONTEXT, np.float32)
        said, samples = [], 0
        cutter, resampler = audio.Blocks(self.STEP), audio.Resampler(SAMPLE_RATE, self.RATE)
        for block in blocks:
            samples += len(block)
            for piece in cutter.push(resampler.push(block)):
                value, state, context = self._step(piece, state, context)
                said.append(value)
        last = np.concatenate([cutter.rest(), resampler.push(np.zeros(0, np.float32), final=True)])
        piece = np.pad(last, (0, max(0, self.STEP - len(last))))[: self.STEP]
        said.append(self._step(piece, state, context)[0])
        times = (np.arange(samples // HOP) + 0.5) / FRAMES  # from steps of 32 ms to frames of 10 ms
        return np.array(said)[np.minimum((times * self.RATE / self.STEP).astype(int), len(said) - 1)]

    def _step(self, piece: np.ndarray, state: Any, context: np.ndarray) -> tuple[float, Any, np.ndarray]:
        heard = np.concatenate([context, piece])[None].astype(np.float32)
        inputs = {"input": heard, "state": state, "sr": np.array(self.RATE, np.int64)}
        value, state = self._session.run(None, inputs)
        return float(value[0, 0]), state, piece[-self.CONTEXT :]


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
