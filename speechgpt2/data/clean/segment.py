"""Cuts a recording into clips of speech, at pauses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechgpt2.data.clean.cut_clip import cut_clip, text_of
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import Clip, ClipText
from speechgpt2.dsp.activity import (
    SPEECH_THRESHOLD,
    ActivityDetector,
    Detector,
    active_spans,
    energy_activity,
    silero_activity,
)
from speechgpt2.dsp.spectrum import FRAMES_PER_SECOND

BLOCK = 300.0  # seconds read at a time


@dataclass(frozen=True)
class SegmentConfig:
    """Options, in seconds.

    A recording with a transcript becomes one clip if it is not longer than `longest`. In a longer one, the lines of
    the transcript with known times go to the clips that contain them.

    Attributes:
        detector: the detector of voice activity.
        gap: pauses up to this length stay within a clip.
        shortest: a shorter span does not count as speech.
        longest: a longer span is cut at its longest pauses.
        margin: audio that a clip has before and after the detected speech.
    """

    kind: Literal["segment"] = "segment"
    detector: Detector = "energy"
    gap: float = 0.5
    shortest: float = 0.25
    longest: float = 30.0
    margin: float = 0.1


class Segment(Stage[SegmentConfig]):
    """Cuts a clip for each span of speech, named by its start in ms. Words with known times are never cut."""

    version = 2

    @property
    def model(self) -> str:
        """The model that the step uses, with its version."""
        return "silero-5" if self.config.detector == "silero" else ""

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        """Return a clip for each span of speech."""
        config = self.config
        detect: ActivityDetector = silero_activity if config.detector == "silero" else energy_activity
        activity = detect(_blocks(clip, clip_audio))
        active = active_spans(activity, 0.1, 0.0)
        spans = active_spans(activity, config.gap, config.shortest)
        if not spans:
            raise Rejected("no-speech", "contains no speech", 0.0, config.shortest)
        if clip.text.raw and clip.audio.duration <= config.longest:
            spans = [_widened((spans[0][0], spans[-1][1]), clip)]
        longest = config.longest - 2 * config.margin
        short_spans = [short for span in spans for short in _cut(span, active, longest)]
        return [self._clip(clip, span, activity, len(short_spans)) for span in short_spans]

    def _clip(self, clip: Clip, span: tuple[float, float], activity: np.ndarray, count: int) -> Clip:
        start = max(0.0, span[0] - self.config.margin)
        end = min(clip.audio.duration, span[1] + self.config.margin)
        first_frame = round(start * FRAMES_PER_SECOND)
        end_frame = max(round(end * FRAMES_PER_SECOND), first_frame + 1)
        spoken = activity[first_frame:end_frame] >= SPEECH_THRESHOLD
        quality = replace(clip.quality, silence=round(1 - float(spoken.mean()), 4))
        id = f"{clip.id}-{round(start * 1000):08d}"
        part = replace(cut_clip(clip, start, end), id=id, parent_id=clip.id, quality=quality)
        return part if count == 1 else _with_text(part, text_of(clip, start, end))


def _with_text(clip: Clip, text: ClipText) -> Clip:
    labels = {field: label for field, label in clip.labels_from.items() if text.raw or field.split(".")[0] != "text"}
    return replace(clip, text=text, labels_from=labels)


def _widened(span: tuple[float, float], clip: Clip) -> tuple[float, float]:
    """Extend the span to all words with known times: soft words may lie outside of the detected speech."""
    words = clip.align.words
    return (min(span[0], words[0].start), max(span[1], words[-1].end)) if words else span


def _blocks(clip: Clip, clip_audio: ClipAudio) -> Iterator[np.ndarray]:
    start = 0.0
    while start < clip.audio.duration:
        length = min(BLOCK, clip.audio.duration - start)
        yield clip_audio.span(clip.audio.start + start, length)
        start += length


def _cut(span: tuple[float, float], active: list[tuple[float, float]], longest: float) -> list[tuple[float, float]]:
    """Cut the span into spans of at most `longest` seconds, at the longest pauses, which are left out."""
    start, end = span
    if end - start <= longest:
        return [span]
    inside = [(s, e) for s, e in active if e > start and s < end]
    pauses = [(b[0] - a[1], a[1], b[0]) for a, b in zip(inside, inside[1:])]
    if not pauses:  # without a pause: at a fixed length
        middle = start + min(longest, (end - start) / 2)
        return [*_cut((start, middle), active, longest), *_cut((middle, end), active, longest)]
    _, before, after = max(pauses, key=lambda pause: (pause[0], -pause[1]))
    return [*_cut((start, before), active, longest), *_cut((after, end), active, longest)]
