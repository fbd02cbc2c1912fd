"""Render a script: two channels of audio, one for each speaker, with the exact times of all words.

Turns follow one another with a drawn gap, which may be an overlap. A backchannel is spoken into the previous turn. An
interruption begins within the previous turn, which breaks off after a reaction time at the end of a word. Audio and
text both end there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from speechgpt2.data.conversations.script import Line, Script, first_words
from speechgpt2.data.conversations.timing import TimingConfig
from speechgpt2.tts.utterance import Phone, Utterance, Word
from speechgpt2.types import SAMPLE_RATE

LineSpeaker = Callable[[Line], Utterance]  # speaks a line of a role; raises ValueError where it cannot

LEAD = 0.3  # seconds of silence at both ends
BREATH = 0.1  # seconds between two contributions on one channel, at least
FADE = 0.02  # seconds in which an interrupted voice falls silent
MOST_OVERLAP = 0.5  # of a turn, by the gap that follows it


class ConversationEvent(NamedTuple):
    """Something that happens between people, in seconds; `by` is a channel."""

    type: str  # backchannel, interruption, overlap, filler, repetition, repair
    start: float
    end: float
    by: int


@dataclass(frozen=True)
class SpokenLine:
    """A line as it was spoken; times in seconds from the start of the conversation.

    Attributes:
        text: what was spoken; shorter than in the script if it was interrupted.
        cut: whether it was interrupted.
    """

    channel: int
    role: str
    kind: str
    text: str
    start: float
    end: float
    words: tuple[Word, ...]
    phones: tuple[Phone, ...] = ()
    style: str = ""
    tool: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class SpokenConversation:
    """`pcm [2, N]` float32 at 24 kHz, channel 0 is the script's first role; lines in the order of their starts."""

    script: Script
    pcm: np.ndarray = field(repr=False)
    lines: tuple[SpokenLine, ...]
    events: tuple[ConversationEvent, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the audio, as plain values."""
        lines = [
            {**vars(line), "words": [list(w) for w in line.words], "phones": [list(p) for p in line.phones]}
            for line in self.lines
        ]
        return {
            "scene": self.script.scene, "lang": self.script.lang, "roles": list(self.script.roles),
            "samples": self.pcm.shape[1], "lines": lines, "events": [event._asdict() for event in self.events],
        }  # fmt: skip


@dataclass
class _ScheduledLine:
    """A line with its audio and its start; `cut` if it was interrupted."""

    line: Line
    channel: int
    said: Utterance
    start: float
    cut: bool = False

    @property
    def end(self) -> float:
        return self.start + self.said.duration


def render_script(
    script: Script, speakers: Mapping[str, LineSpeaker], timing: TimingConfig, rng: random.Random
) -> SpokenConversation:
    """Speak the script. Errors: `ValueError` if a line cannot be spoken."""
    placed: list[_ScheduledLine] = []
    turn: _ScheduledLine | None = None  # the last one that is no backchannel
    free = [LEAD, LEAD]  # when each channel is silent
    for line in script.lines:
        channel = script.roles.index(line.role)
        said = speakers[line.role](line)
        if line.kind == "backchannel":
            assert turn is not None
            start = turn.start + timing.backchannel.draw(rng) * turn.said.duration
        elif line.kind == "interruption":
            assert turn is not None
            start = _interrupt(turn, timing, rng, earliest=free[channel])
            free[turn.channel] = turn.end + BREATH
        else:
            start = LEAD if turn is None else turn.end + max(timing.gap.draw(rng), -MOST_OVERLAP * turn.said.duration)
        spoken = _ScheduledLine(line, channel, said, max(start, free[channel]))
        free[channel] = spoken.end + BREATH
        placed.append(spoken)
        turn = turn if line.kind == "backchannel" else spoken
    placed.sort(key=lambda p: (p.start, p.channel))
    lines = tuple(_spoken(p) for p in placed)
    return SpokenConversation(script, _mix(placed), lines, _events(placed, lines))


def _interrupt(turn: _ScheduledLine, timing: TimingConfig, rng: random.Random, earliest: float) -> float:
    """Cut the turn at the end of a word; returns when the interruption begins."""
    start = max(turn.start + timing.interruption.draw(rng) * turn.said.duration, earliest)
    silent = start + timing.reaction.draw(rng) - turn.start
    kept = tuple(word for word in turn.said.words if word.start < silent)
    if len(kept) == len(turn.said.words) or not kept:  # it ended before the reaction
        return start
    samples = min(len(turn.said.pcm), int((kept[-1].end + FADE) * SAMPLE_RATE))
    pcm = turn.said.pcm[:samples].copy()
    fade = int(FADE * SAMPLE_RATE)
    pcm[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    phones = tuple(phone for phone in turn.said.phones if phone.end <= kept[-1].end + 1e-6)
    text = first_words(turn.said.text, len(kept), turn.said.lang)
    turn.said = replace(turn.said, pcm=pcm, text=text, words=kept, phones=phones)
    turn.cut = True
    return start


def _spoken(p: _ScheduledLine) -> SpokenLine:
    def at(time: float) -> float:
        return round(time + p.start, 4)

    words = tuple(Word(w.text, at(w.start), at(w.end)) for w in p.said.words)
    phones = tuple(Phone(s.label, at(s.start), at(s.end)) for s in p.said.phones)
    return SpokenLine(
        p.channel, p.line.role, p.line.kind, p.said.text, at(0.0), at(p.said.duration), words, phones, p.line.style,
        dict(p.line.tool), p.cut,
    )  # fmt: skip


def _mix(placed: list[_ScheduledLine]) -> np.ndarray:
    """`[2, N]` float32: every line at its place."""
    pcm = np.zeros((2, int((max(p.end for p in placed) + LEAD) * SAMPLE_RATE)), np.float32)
    for p in placed:
        first = round(p.start * SAMPLE_RATE)
        pcm[p.channel, first : first + len(p.said.pcm)] += p.said.pcm
    return pcm


def _events(placed: list[_ScheduledLine], lines: tuple[SpokenLine, ...]) -> tuple[ConversationEvent, ...]:
    found: list[ConversationEvent] = []
    for p, line in zip(placed, lines):
        if line.kind != "turn":
            found.append(ConversationEvent(line.kind, line.start, line.end, line.channel))
        for mark in p.line.marks:
            if mark.end <= len(line.words):
                found.append(
                    ConversationEvent(
                        mark.kind, line.words[mark.start].start, line.words[mark.end - 1].end, line.channel
                    )
                )
    for number, line in enumerate(lines):
        for other in lines[number + 1 :]:
            if other.channel != line.channel and other.start < line.end:
                found.append(ConversationEvent("overlap", other.start, min(line.end, other.end), other.channel))
    return tuple(sorted(found, key=lambda event: (event.start, event.type)))
