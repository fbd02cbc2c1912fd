"""What a connection asks of the dialogue behind it, and what it is told. Knows neither engine nor voice activity.

Every call returns at once; what comes of it arrives as events, in order:

    SpeechStarted ─► SpeechStopped ─► TurnTaken ─► ReplyStarted ─► Transcript, TextDelta, AudioDelta … ─► TurnDone
    upon a reply: SpeechStarted ─► Interrupted ─► TurnDone("interrupted"), and on as above
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speechgpt2.server.wire import Session
from speechgpt2.types import Event, Turn


@dataclass(frozen=True)
class TurnTaken:
    """The user's spoken turn `number` is over and counts; it lasted from sample `start` to `end` of the microphone."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class ReplyStarted:
    """The reply `number` is under way; what follows belongs to it, up to its `TurnDone`."""

    number: int


@dataclass(frozen=True)
class IdleTimeout:
    """Nobody has spoken since sample `start` of the microphone; now is `end`. A reply follows."""

    start: int
    end: int


class Partner(Protocol):
    """A dialogue with one person. Turns and replies have numbers, by which they can be cut or forgotten later."""

    def configure(self, session: Session, notes: tuple[str, ...]) -> None:
        """Go on with these settings; `notes` are system messages. Errors: `UserError`, and nothing has changed."""

    def hear(self, pcm: np.ndarray) -> None:
        """The microphone's next samples, `pcm [N]`."""

    def commit(self) -> None:
        """What was heard since the last turn is one: `TurnTaken` will come. Errors: `UserError` if that is nothing."""

    def clear(self) -> None:
        """Forget what was heard since the last turn."""

    def remember(self, turn: Turn) -> int:
        """A turn that was not heard: typed, or history; returns its number. Errors: `UserError`."""

    def respond(self, session: Session, read_aloud: str | None = None) -> int:
        """Answer, with settings of its own, or read a text aloud; returns the reply's number.

        Errors: `UserError` if a reply is under way.
        """

    def interrupt(self) -> None:
        """Stop the reply, as far as it can have been heard by now."""

    def truncate(self, number: int, heard: int) -> None:
        """Only the first `heard` samples of a reply were heard; the model forgets the rest."""

    def forget(self, number: int) -> None:
        """Forget a turn or a reply."""

    def events(self) -> AsyncIterator[Event | TurnTaken | ReplyStarted | IdleTimeout]:
        """What happens, until the dialogue is closed; for one reader."""

    def close(self) -> None:
        """Give the slot back. Twice is once."""


class Model(Protocol):
    """Where dialogues come from. `voices` and `styles` are names that people may choose from."""

    voices: list[str]
    styles: list[str]

    def open(self, session: Session, paced: bool = True) -> Partner:
        """A dialogue. Not `paced`: answers come as fast as they can be made. Errors: `Refused`, `UserError`."""

    def watch(self, observe: Callable[[float], None]) -> None:
        """Call `observe` with the seconds of every step, from any thread."""

    def close(self) -> None:
        """End all dialogues, and stop."""
