"""Speaker changes within a clip, speaker embeddings, and the speakers of a recording.

These are simple methods without a model, which suffice for distinct voices; plugins.py has better ones. The Bayesian
information criterion (Chen and Gopalakrishnan 1998) finds changes. An embedding is mean and spread of the cepstra.
Clips of a recording with close embeddings have the same speaker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from speechgpt2.data.clean.cut_clip import cut_clip
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import GlobalStep, ReadClips
from speechgpt2.data.pipeline.spectra import power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Label, Speaker
from speechgpt2.dsp.spectrum import FRAMES_PER_SECOND, cepstra, decibels

COEFFICIENTS = 12
SIDE = 150  # frames on each side of a possible change that are compared
STRIDE = 10  # frames between two possible changes
TOOL = "cepstra-1"


def find_change(mel: np.ndarray) -> tuple[int, float]:
    """Find the best speaker change.

    Returns:
        The frame of `[T, D]` at which two Gaussians explain its surroundings better than one, and the gain in nats per
        frame; (0, 0) if there is none.
    """
    size = mel.shape[1]
    # Their outer products hold count, sum and squares.
    extended = np.concatenate([mel, np.ones((len(mel), 1))], axis=1)
    moments = np.cumsum(np.pad(extended[:, :, None] * extended[:, None, :], ((1, 0), (0, 0), (0, 0))), axis=0)
    frames = np.arange(SIDE, len(mel) - SIDE, STRIDE)
    if not len(frames):
        return 0, 0.0
    left, right = moments[frames] - moments[frames - SIDE], moments[frames + SIDE] - moments[frames]
    of_two = (_log_determinants(left, size) + _log_determinants(right, size)) / 2
    gains = _log_determinants(left + right, size) - of_two
    best = int(gains.argmax())
    return (int(frames[best]), float(gains[best])) if gains[best] > 0 else (0, 0.0)


def _log_determinants(moments: np.ndarray, size: int) -> np.ndarray:
    """Log-determinants `[T]` of the covariances of sums of outer products `[T, size + 1, size + 1]`."""
    count = moments[:, size, size, None]
    mean = moments[:, size, :size] / count
    covariance = moments[:, :size, :size] / count[:, :, None] - mean[:, :, None] * mean[:, None, :]
    return np.linalg.slogdet(covariance + 1e-2 * np.eye(size))[1]


@dataclass(frozen=True)
class SpeakerChangesConfig:
    """Cut where the gain of a change exceeds `gain`, in nats per frame; no clip is shorter than 1.5 s."""

    kind: Literal["speaker_changes"] = "speaker_changes"
    gain: float = 4.8


class SpeakerChanges(Stage[SpeakerChangesConfig]):
    """Cuts a clip without a transcript at speaker changes. Overlapping speech is not cut."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        """Return a clip for each speaker's span."""
        if clip.text.raw:
            return [clip]
        spectrum = power_of(clip_audio)
        level = decibels(spectrum.sum(axis=1))
        loud = np.flatnonzero(level > level.max() - 35)
        cuts = sorted(int(loud[frame]) for frame in self._changes(cepstra(spectrum[loud], COEFFICIENTS)))
        if not cuts:
            return [clip]
        edges = [0.0, *(round(cut / FRAMES_PER_SECOND, 3) for cut in cuts), clip.audio.duration]
        return [self._span(clip, start, end) for start, end in zip(edges, edges[1:])]

    def _changes(self, mel: np.ndarray, offset: int = 0) -> list[int]:
        frame, gain = find_change(mel)
        if gain <= self.config.gain:
            return []
        return [*self._changes(mel[:frame], offset), offset + frame, *self._changes(mel[frame:], offset + frame)]

    def _span(self, clip: Clip, start: float, end: float) -> Clip:
        return replace(cut_clip(clip, start, end), id=f"{clip.id}-{round(start * 1000):06d}")


@dataclass(frozen=True)
class SpeakerEmbeddingConfig:
    """Options of `SpeakerEmbedding`: none."""

    kind: Literal["speaker_embedding"] = "speaker_embedding"


class SpeakerEmbedding(Stage[SpeakerEmbeddingConfig]):
    """Adds a speaker without a name, with an embedding `[24]`."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with new fields."""
        if clip.speakers:
            return clip
        spectrum = power_of(clip_audio)
        level = decibels(spectrum.sum(axis=1))
        mel = cepstra(spectrum[level > level.max() - 25], COEFFICIENTS)
        vector = np.concatenate([mel.mean(axis=0), mel.std(axis=0)])
        speaker = Speaker("", tuple(round(float(value), 3) for value in vector))
        labels = {**clip.labels_from, "speakers.embedding": Label(TOOL, "1")}
        return replace(clip, speakers=(speaker,), labels_from=labels)


@dataclass(frozen=True)
class SpeakersConfig:
    """Options: embeddings closer than `nearest` (per dimension, in standard deviations of the run) are one speaker."""

    kind: Literal["speakers"] = "speakers"
    nearest: float = 0.9


class NameSpeakers(GlobalStep[SpeakersConfig]):
    """Names the speakers of each recording: "RECORDING/1" speaks first."""

    version = 1

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        count, total, squares = 0, np.zeros(2 * COEFFICIENTS), np.zeros(2 * COEFFICIENTS)
        for clip in read():
            if _is_nameless(clip):
                vector = np.array(clip.speakers[0].embedding)
                count, total, squares = count + 1, total + vector, squares + np.square(vector)
        spread = np.sqrt(np.maximum(squares / max(count, 1) - np.square(total / max(count, 1)), 1e-6))
        for _, clips in groupby(read(), lambda clip: clip.parent_id or clip.id):
            speakers: list[tuple[np.ndarray, int]] = []  # those of the recording: mean embeddings and counts of clips
            for clip in clips:
                yield self._named(clip, speakers, spread) if _is_nameless(clip) else clip

    def _named(self, clip: Clip, speakers: list[tuple[np.ndarray, int]], spread: np.ndarray) -> Clip:
        """Name the nearest speaker of the recording, or a new one, which is added to `speakers`."""
        vector = np.array(clip.speakers[0].embedding) / spread
        distances = [float(np.sqrt(np.square(vector - mean).mean())) for mean, _ in speakers]
        nearest = int(np.argmin(distances)) if distances else -1
        if nearest < 0 or distances[nearest] > self.config.nearest:
            nearest = len(speakers)
            speakers.append((vector, 1))
        else:
            mean, count = speakers[nearest]
            speakers[nearest] = (mean * count + vector) / (count + 1), count + 1
        speaker = replace(clip.speakers[0], id=f"{clip.parent_id or clip.id}/{nearest + 1}")
        labels = {**clip.labels_from, "speakers.id": Label(TOOL, "1")}
        return replace(clip, speakers=(speaker,), labels_from=labels)


def _is_nameless(clip: Clip) -> bool:
    return clip.kept and len(clip.speakers) == 1 and not clip.speakers[0].id and bool(clip.speakers[0].embedding)
