"""Cut a part out of a clip, with the labels that belong to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from speechgpt2.data.record import Clip, ClipText, DialogueEvent
from speechgpt2.tts.utterance import Alignment, Phone, Word

DIGITS = 3  # decimals of the seconds at which a part begins and ends
SPILL = 0.3  # seconds by which a line may exceed a clip, since subtitles are not exact
FINE = 6  # decimals of the times within a part

T = TypeVar("T", Word, Phone)


def part(clip: Clip, start: float, end: float) -> Clip:
    """Return the part from `start` to `end` seconds, to the millisecond.

    Words, phones, events and lines belong to the part that contains their middle, and are clipped to it. The caller
    sets text and id.
    """
    start, seconds = round(start, DIGITS), round(end - start, DIGITS)
    audio = replace(clip.audio, start=round(clip.audio.start + start, DIGITS), duration=seconds)
    align = Alignment(
        _named(clip.align.words, start, seconds),
        _named(clip.align.phones, start, seconds),
        _named(clip.align.tones, start, seconds),
    )
    events = tuple(
        replace(event, start=_clock(event.start, start, seconds), end=_clock(event.end, start, seconds))
        for event in clip.events
        if _lies_in(event, start, seconds)
    )
    text = replace(clip.text, lines=_named(clip.text.lines, start, seconds))
    return replace(clip, audio=audio, align=align, events=events, text=text)


def text_of(clip: Clip, start: float, end: float) -> ClipText:
    """Return the text of the lines from `start` to `end` seconds; an empty one if a boundary splits a line."""
    start, seconds = round(start, DIGITS), round(end - start, DIGITS)
    lines = _named(clip.text.lines, start, seconds)
    edges = (start, start + seconds)
    split = any(line.start < edge - SPILL and line.end > edge + SPILL for line in clip.text.lines for edge in edges)
    return ClipText() if split else ClipText(raw=" ".join(line.text for line in lines), lines=lines)


def _named(spans: Iterable[T], start: float, seconds: float) -> tuple[T, ...]:
    return tuple(
        type(span)(span[0], _clock(span.start, start, seconds), _clock(span.end, start, seconds))
        for span in spans
        if _lies_in(span, start, seconds)
    )


def _lies_in(span: Word | Phone | DialogueEvent, start: float, seconds: float) -> bool:
    return start <= (span.start + span.end) / 2 < start + seconds


def _clock(time: float, start: float, seconds: float) -> float:
    return round(min(max(time - start, 0.0), seconds), FINE)
