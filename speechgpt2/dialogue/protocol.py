"""What a dialogue needs of an engine, and nothing of how engines are built: the two talk through this file.

    session = engine.open(SessionSettings(mode="s2s"))     # `Full` at once if no slot is free
    session.begin_speech()                                 # the user speaks …
    session.hear(pcm)                                      # … and is taken in while speaking
    session.end_speech()
    session.respond()
    async for event in session.events(): ...               # Transcript, TextDelta, AudioDelta, TurnDone
    session.interrupt(heard=31_200)                        # the listener broke in after 1.3 s

Every method of a session returns at once, from any thread: the engine does the work in its own thread, in the order of
the calls. What goes wrong there is an `Error` event of this session and nobody else's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.types import MODES, Event, Mode, Speech, Turn

LONGEST_REPLY = 1024  # patches


class Full(UserError):
    """Every slot is taken; nothing was queued."""


class Closed(UserError):
    """The engine takes no new sessions: it is closing, or has not been started."""


@dataclass(frozen=True)
class SessionSettings:
    """How a session talks.

    `mode` says which sides are spoken; `system` replaces the system line; `greeting` is the model's first turn, already
    played. `temperature` 0 is the likeliest choice; `seed` decides all others: the same seed and the same input give
    the same answers, whoever else is talking. `max_patches` bounds one answer: 120 ms of speech or a word piece each.
    """

    mode: Mode = "s2s"
    system: str | None = None
    greeting: Speech | None = None
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    seed: int = 0
    max_patches: int = LONGEST_REPLY

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"unknown mode '{self.mode}'; one of {', '.join(MODES)}")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature must be in 0…2, not {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("top_k must be at least 0, and top_p above 0 and at most 1")
        if self.max_patches < 1:
            raise UserError(f"max_patches must be at least 1, not {self.max_patches}")


@dataclass(frozen=True)
class EngineStats:
    """How busy an engine is. Seconds are of the last minute or so of steps that did something."""

    slots: int
    used: int
    answering: int
    steps: int  # since the start
    step_seconds: float  # median
    slowest_step_seconds: float
    failures: int  # sessions' errors since the start


class Session(Protocol):
    """One conversation, in a slot of its own until it is closed."""

    def configure(self, settings: SessionSettings) -> None:
        """Go on with other settings. A new `mode` or `system` line changes what the model remembers of its
        instructions, not of the talk; `greeting` counts only when a session is opened.
        """

    def begin_speech(self, prefix: int = 0) -> None:
        """The user's turn begins `prefix` samples before the newest sample that was given to `hear`."""

    def hear(self, pcm: np.ndarray) -> None:
        """The microphone's next samples: `pcm [N]` float32 at 24 kHz, of any length. During a turn they are encoded and
        taken in at once; outside of one only the last two seconds are kept, for the next `begin_speech`.
        """

    def end_speech(self) -> None:
        """The user's turn ends here. `hear` may go on: until `keep_turn` the turn may be reopened by `take_back`."""

    def take_back(self) -> None:
        """The turn was not over: the answer to it is undone as if it had never been begun, its events are no longer
        delivered, and listening goes on with what was heard in between.
        """

    def keep_turn(self) -> None:
        """The turn was over; what was heard since belongs to no turn."""

    def drop_speech(self) -> None:
        """Forget the user's turn that is being spoken, or has been and is not yet answered."""

    def write(self, text: str) -> None:
        """A typed turn of the user's, to be answered by `respond`."""

    def remember(self, turn: Turn) -> None:
        """A turn of either side's, as history."""

    def respond(self, max_patches: int | None = None) -> None:
        """Answer all that was said. `max_patches` bounds this answer."""

    def interrupt(self, heard: int) -> None:
        """Stop, and forget what the listener did not hear of the latest answer: all after its first `heard` samples.

        No later event of that answer is delivered, but for `Interrupted` and `TurnDone("interrupted")` if it was still
        being given. Calling it again for the same answer corrects `heard`, even while the user's next turn is going on.
        """

    def events(self) -> AsyncIterator[Event]:
        """What happens, in order, until the session is closed; for one consumer."""

    def close(self) -> None:
        """Give the slot back. Twice is once."""


class Engine(Protocol):
    """Many sessions on one model."""

    def start(self) -> None:
        """Begin to work, in a thread of the engine's own."""

    def open(self, settings: SessionSettings) -> Session:
        """A session in a free slot. Errors: `Full`, `Closed`; `UserError` for settings the model cannot follow."""

    def stats(self) -> EngineStats:
        """How busy it is."""

    def close(self, drain: float = 0.0) -> None:
        """Take no more sessions, let answers go on for `drain` seconds at most, close all sessions, and stop."""
