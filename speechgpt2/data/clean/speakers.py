"""Speaker changes within a clip, speaker embeddings, and the speakers of a recording.

Simple methods without a model: the Bayesian information criterion (Chen and Gopalakrishnan 1998) finds changes; mean
and spread of the cepstra are the embedding; close clips of a recording have the same speaker. They suffice for
distinct voices. For better results use plugins.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from speechgpt2.data.clean.cut_clip import part
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import GlobalStep, ReadClips
from speechgpt2.data.pipeline.spectra import power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Label, Speaker
from speechgpt2.dsp.spectrum import FRAMES_PER_SECOND, cepstra, decibels

COEFFICIENTS = 12
SIDE = 150  # frames on each side of a change that are compared
STRIDE = 10  # frames between two candidates
TOOL = "cepstra-1"


def change(mel: np.ndarray) -> tuple[int, float]:
    """Find the best speaker change.

    Returns:
        The frame of `[T, D]` at which two Gaussians explain its surroundings better than one, and the gain in nats per
        frame; (0, 0) if there is none.
    """
    size = mel.shape[1]
    ones = np.concatenate([mel, np.ones((len(mel), 1))], axis=1)
    moments = np.cumsum(np.pad(ones[:, :, None] * ones[:, None, :], ((1, 0), (0, 0), (0, 0))), axis=0)
    frames = np.arange(SIDE, len(mel) - SIDE, STRIDE)
    if not len(frames):
        return 0, 0.0
    left, right = moments[frames] - moments[frames - SIDE], moments[frames + SIDE] - moments[frames]
    apart = (_log_determinants(left, size) + _log_determinants(right, size)) / 2
    gains = _log_determinants(left + right, size) - apart
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
    """Cut where the gain exceeds `gain`; no piece is shorter than 1.5 s."""

    kind: Literal["speaker_changes"] = "speaker_changes"
    gain: float = 4.8


class SpeakerChanges(Stage[SpeakerChangesConfig]):
    """Cuts a clip without a transcript at speaker changes. Overlapping speech is not cut."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        """Return the parts of the clip."""
        if clip.text.raw:
            return [clip]
        spectrum = power_of(clip_audio)
        level = decibels(spectrum.sum(axis=1))
        loud = np.flatnonzero(level > level.max() - 35)
        cuts = sorted(int(loud[frame]) for frame in self._changes(cepstra(spectrum[loud], COEFFICIENTS)))
        if not cuts:
            return [clip]
        edges = [0.0, *(round(cut / FRAMES_PER_SECOND, 3) for cut in cuts), clip.audio.duration]
        return [self._piece(clip, start, end) for start, end in zip(edges, edges[1:])]

    def _changes(self, mel: np.ndarray, offset: int = 0) -> list[int]:
        frame, gain = change(mel)
        if gain <= self.config.gain:
            return []
        return [*self._changes(mel[:frame], offset), offset + frame, *self._changes(mel[frame:], offset + frame)]

    def _piece(self, clip: Clip, start: float, end: float) -> Clip:
        return replace(part(clip, start, end), id=f"{clip.id}-{round(start * 1000):06d}")


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
            known: list[tuple[np.ndarray, int]] = []  # speakers of the recording: mean embeddings and counts
            for clip in clips:
                yield self._named(clip, known, spread) if _is_nameless(clip) else clip

    def _named(self, clip: Clip, known: list[tuple[np.ndarray, int]], spread: np.ndarray) -> Clip:
        vector = np.array(clip.speakers[0].embedding) / spread
        distances = [float(np.sqrt(np.square(vector - mean).mean())) for mean, _ in known]
        nearest = int(np.argmin(distances)) if distances else -1
        if nearest < 0 or distances[nearest] > self.config.nearest:
            nearest = len(known)
            known.append((vector, 1))
        else:
            mean, count = known[nearest]
            known[nearest] = (mean * count + vector) / (count + 1), count + 1
        speaker = replace(clip.speakers[0], id=f"{clip.parent_id or clip.id}/{nearest + 1}")
        labels = {**clip.labels_from, "speakers.id": Label(TOOL, "1")}
        return replace(clip, speakers=(speaker,), labels_from=labels)


def _is_nameless(clip: Clip) -> bool:
    return clip.kept and len(clip.speakers) == 1 and not clip.speakers[0].id and bool(clip.speakers[0].embedding)
