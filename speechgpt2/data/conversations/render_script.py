"""Renders a script: two channels of audio, one for each speaker, with the exact times of all words.

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

LineSpeaker = Callable[[Line], Utterance]  # speaks a line of a role; raises ValueError if it cannot

LEAD = 0.3  # seconds of silence at both ends
BREATH = 0.1  # least seconds between two lines on one channel
FADE = 0.02  # seconds in which an interrupted voice falls silent
MAX_OVERLAP = 0.5  # share of a turn that the next one may overlap


class ConversationEvent(NamedTuple):
    """An event of a conversation, in seconds; `by` is the channel of its speaker."""

    type: str  # backchannel, interruption, overlap, filler, repetition, repair
    start: float
    end: float
    by: int


@dataclass(frozen=True)
class SpokenLine:
    """A spoken line; times are seconds from the start of the conversation.

    Attributes:
        text: the spoken text; shorter than in the script if the line was interrupted.
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
    utterance: Utterance
    start: float
    cut: bool = False

    @property
    def end(self) -> float:
        return self.start + self.utterance.duration


def render_script(
    script: Script, speakers: Mapping[str, LineSpeaker], timing: TimingConfig, rng: random.Random
) -> SpokenConversation:
    """Speak a script.

    Args:
        script: the script.
        speakers: speaks the lines of each role.
        timing: the distributions of gaps, backchannels and reactions.
        rng: draws from them.

    Raises:
        ValueError: a line cannot be spoken.
    """
    scheduled: list[_ScheduledLine] = []
    turn: _ScheduledLine | None = None  # the last line that is not a backchannel
    free = [LEAD, LEAD]  # seconds from which each channel is free
    for line in script.lines:
        channel = script.roles.index(line.role)
        utterance = speakers[line.role](line)
        if line.kind == "backchannel":
            assert turn is not None
            start = turn.start + timing.backchannel.draw(rng) * turn.utterance.duration
        elif line.kind == "interruption":
            assert turn is not None
            start = _interrupt(turn, timing, rng, earliest=free[channel])
            free[turn.channel] = turn.end + BREATH
        else:
            start = (
                LEAD if turn is None else turn.end + max(timing.gap.draw(rng), -MAX_OVERLAP * turn.utterance.duration)
            )
        spoken = _ScheduledLine(line, channel, utterance, max(start, free[channel]))
        free[channel] = spoken.end + BREATH
        scheduled.append(spoken)
        turn = turn if line.kind == "backchannel" else spoken
    scheduled.sort(key=lambda line: (line.start, line.channel))
    lines = tuple(_spoken_line(line) for line in scheduled)
    return SpokenConversation(script, _mix(scheduled), lines, _events(scheduled, lines))


def _interrupt(turn: _ScheduledLine, timing: TimingConfig, rng: random.Random, earliest: float) -> float:
    """Cut the turn at the end of a word.

    Returns:
        The seconds at which the interruption begins, not before `earliest`.
    """
    start = max(turn.start + timing.interruption.draw(rng) * turn.utterance.duration, earliest)
    reaction = start + timing.reaction.draw(rng) - turn.start  # seconds after the turn's start
    words = tuple(word for word in turn.utterance.words if word.start < reaction)
    if (
        len(words) == len(turn.utterance.words) or not words
    ):  # the turn ends before the reaction, or reacts before a word
        return start
    samples = min(len(turn.utterance.pcm), int((words[-1].end + FADE) * SAMPLE_RATE))
    pcm = turn.utterance.pcm[:samples].copy()
    fade = int(FADE * SAMPLE_RATE)
    pcm[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    phones = tuple(phone for phone in turn.utterance.phones if phone.end <= words[-1].end + 1e-6)
    text = first_words(turn.utterance.text, len(words), turn.utterance.lang)
    turn.utterance = replace(turn.utterance, pcm=pcm, text=text, words=words, phones=phones)
    turn.cut = True
    return start


def _spoken_line(scheduled: _ScheduledLine) -> SpokenLine:
    """Return the line with times from the start of the conversation."""
    line, utterance = scheduled.line, scheduled.utterance

    def at(time: float) -> float:
        return round(time + scheduled.start, 4)

    words = tuple(Word(word.text, at(word.start), at(word.end)) for word in utterance.words)
    phones = tuple(Phone(phone.label, at(phone.start), at(phone.end)) for phone in utterance.phones)
    return SpokenLine(
        scheduled.channel, line.role, line.kind, utterance.text, at(0.0), at(utterance.duration), words, phones,
        line.style, dict(line.tool), scheduled.cut,
    )  # fmt: skip


def _mix(scheduled: list[_ScheduledLine]) -> np.ndarray:
    """Return `pcm [2, N]` float32, with every line at its start."""
    pcm = np.zeros((2, int((max(line.end for line in scheduled) + LEAD) * SAMPLE_RATE)), np.float32)
    for line in scheduled:
        first = round(line.start * SAMPLE_RATE)
        pcm[line.channel, first : first + len(line.utterance.pcm)] += line.utterance.pcm
    return pcm


def _events(scheduled: list[_ScheduledLine], lines: tuple[SpokenLine, ...]) -> tuple[ConversationEvent, ...]:
    events: list[ConversationEvent] = []
    for source, line in zip(scheduled, lines):
        if line.kind != "turn":
            events.append(ConversationEvent(line.kind, line.start, line.end, line.channel))
        for mark in source.line.marks:
            if mark.end <= len(line.words):
                start, end = line.words[mark.start].start, line.words[mark.end - 1].end
                events.append(ConversationEvent(mark.kind, start, end, line.channel))
    for number, line in enumerate(lines):
        for other in lines[number + 1 :]:
            if other.channel != line.channel and other.start < line.end:
                events.append(ConversationEvent("overlap", other.start, min(line.end, other.end), other.channel))
    return tuple(sorted(events, key=lambda event: (event.start, event.type)))
