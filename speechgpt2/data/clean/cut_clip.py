"""Cuts a span out of a clip, with the labels that belong to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from speechgpt2.data.record import Clip, ClipText, DialogueEvent
from speechgpt2.tts.utterance import Alignment, Phone, Word

DIGITS = 3  # decimals of the seconds at which a span begins and ends
TOLERANCE = 0.3  # seconds by which a line may exceed the span, since subtitles are not exact
LABEL_DIGITS = 6  # decimals of the times of labels within a span

T = TypeVar("T", Word, Phone)


def cut_clip(clip: Clip, start: float, end: float) -> Clip:
    """Return the span from `start` to `end` seconds as a clip, to the millisecond.

    Words, phones, events and lines belong to the span that contains their middle, and are clipped to it. The caller
    sets text and id.
    """
    start, seconds = round(start, DIGITS), round(end - start, DIGITS)
    audio = replace(clip.audio, start=round(clip.audio.start + start, DIGITS), duration=seconds)
    align = Alignment(
        _labels_within(clip.align.words, start, seconds),
        _labels_within(clip.align.phones, start, seconds),
        _labels_within(clip.align.tones, start, seconds),
    )
    events = tuple(
        replace(event, start=_relative(event.start, start, seconds), end=_relative(event.end, start, seconds))
        for event in clip.events
        if _is_within(event, start, seconds)
    )
    text = replace(clip.text, lines=_labels_within(clip.text.lines, start, seconds))
    return replace(clip, audio=audio, align=align, events=events, text=text)


def text_of(clip: Clip, start: float, end: float) -> ClipText:
    """Return the text of the lines from `start` to `end` seconds; an empty one if a boundary splits a line."""
    start, seconds = round(start, DIGITS), round(end - start, DIGITS)
    lines = _labels_within(clip.text.lines, start, seconds)
    edges = (start, start + seconds)
    split = any(
        line.start < edge - TOLERANCE and line.end > edge + TOLERANCE for line in clip.text.lines for edge in edges
    )
    return ClipText() if split else ClipText(raw=" ".join(line.text for line in lines), lines=lines)


def _labels_within(spans: Iterable[T], start: float, seconds: float) -> tuple[T, ...]:
    return tuple(
        type(span)(span[0], _relative(span.start, start, seconds), _relative(span.end, start, seconds))
        for span in spans
        if _is_within(span, start, seconds)
    )


def _is_within(span: Word | Phone | DialogueEvent, start: float, seconds: float) -> bool:
    return start <= (span.start + span.end) / 2 < start + seconds


def _relative(time: float, start: float, seconds: float) -> float:
    return round(min(max(time - start, 0.0), seconds), LABEL_DIGITS)
