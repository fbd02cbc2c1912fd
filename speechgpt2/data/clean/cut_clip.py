"""A part of a clip: its sound, and what is known of times within it, on the part's own clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from speechgpt2.data.record import Clip, DialogueEvent, Transcript
from speechgpt2.tts.utterance import Alignment, Phone, Word

DIGITS = 3  # of the seconds at which a part begins and ends
SPILL = 0.3  # seconds that a line may reach out of a clip: subtitles are not exact
FINE = 6  # of a time within it: moving it costs nothing

T = TypeVar("T", Word, Phone)


def part(clip: Clip, start: float, end: float) -> Clip:
    """From `start` to `end` seconds of the clip, to the millisecond. Words, phones, events and lines of text go to the
    part that holds their middle, and end where it ends. The text itself and the id are the caller's business."""
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


def text_of(clip: Clip, start: float, end: float) -> Transcript:
    """What the lines say from `start` to `end` seconds of a clip; nothing where one of them is cut in two."""
    start, seconds = round(start, DIGITS), round(end - start, DIGITS)
    lines = _named(clip.text.lines, start, seconds)
    edges = (start, start + seconds)
    torn = any(line.start < edge - SPILL and line.end > edge + SPILL for line in clip.text.lines for edge in edges)
    return Transcript() if torn else Transcript(raw=" ".join(line.text for line in lines), lines=lines)


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
