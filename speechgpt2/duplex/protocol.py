"""What dialogue and server ask of an engine, and the settings and events they share. Knows no model.

    engine: Engine                                       # many sessions on one model
    session = engine.open(SessionSettings())             # a slot, or EngineFull at once
    session.start_turn(); session.append_audio(pcm); session.end_turn()
    session.respond()
    async for event in session.events(): ...             # Transcript, TextDelta, AudioDelta, ToolCall, ReplyDone

A session obeys: it is told when the user speaks. A `Dialogue` decides that, and hears all of a microphone's sound:

    dialogue = Dialogue(session, DialogueSettings())     # speechgpt2.duplex.dialogue
    dialogue.append_audio(pcm)                           # any number of samples
    dialogue.commit_audio(); dialogue.clear_audio()      # turns by hand: with `turn_detection` None, or besides it
    dialogue.add_turn(turn)                              # as a session's, and so are respond, truncate, delete_turn
    dialogue.interrupt(heard)                            # None: as much as can have been played by now
    dialogue.configure(settings, session_settings)       # None: as they were
    async for event in dialogue.events(): ...            # DialogueEvent
    dialogue.close()

    SpeechStarted ─► SpeechStopped ─► UserTurnCommitted ─► ReplyStarted ─► Transcript, TextDelta, AudioDelta …
        ─► ReplyDone
    upon a reply: SpeechStarted ─► Interrupted ─► ReplyDone("interrupted"), and on as above

Every call returns at once, from any thread; what was asked happens in the order of the calls. Turns and replies have
numbers, counted from 1 in the order in which they were begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from speechgpt2.types import Event, Speech, Tool, Turn


class EngineFull(Exception):
    """No slot is free, or the engine takes nobody in any more: come back later."""


@dataclass(frozen=True)
class SessionSettings:
    """How one session speaks. `temperature`, `top_k`, `top_p`, `seed` are the sampler's (lm/sampling.py)."""

    speak: bool = True  # answers are spoken; or else written
    instructions: str | None = None  # in place of the model's own system line
    greeting: Speech | None = None  # what the model has said before all else, and never forgets
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    seed: int = 0
    max_patches: int = 512  # of one reply: a minute of speech
    paced: bool = True  # speech comes only so far ahead of its playback; or else as fast as it is read
    tools: tuple[Tool, ...] = ()  # that the model may call, if it knows how to
    require_tool: bool | str = False  # it begins every answer with a call, of any of them or the one of this name


@dataclass(frozen=True)
class ReplyOptions:
    """Of one reply; None means as the session's settings say. `text` is to be read aloud, word for word."""

    instructions: str | None = None
    speak: bool | None = None
    max_patches: int | None = None
    text: str | None = None
    tools: tuple[Tool, ...] | None = None
    require_tool: bool | str | None = None


@dataclass(frozen=True)
class EngineStats:
    """`slots` in all and `used`; `speaking`: sessions with a reply under way; `steps` made in `busy` seconds."""

    slots: int
    used: int
    speaking: int
    steps: int
    busy: float


class Session(Protocol):
    """One talk on one slot.

    Calls that do not fit (hearing while nobody speaks, two replies at once) raise `UserError` at once and change
    nothing. What fails later comes as an `Error` event of this session.
    """

    @property
    def replying(self) -> bool:
        """Whether a reply is under way."""
        ...

    @property
    def backlogged(self) -> bool:
        """Whether more was asked of it than is done: a caller had better wait before it asks for more."""
        ...

    # the user's side

    def start_turn(self) -> int:
        """The user begins to speak; returns the turn's number. Not while a reply is under way."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """The next of what the user says, `pcm [N]` float32 at 24 kHz, taken in while it is being spoken."""
        ...

    def end_turn(self) -> None:
        """The user's turn is over."""
        ...

    def rollback(self) -> None:
        """The last turn was not over: undo `end_turn`, and the reply to it if there is one. Nothing more of that
        reply comes, not even its end.
        """
        ...

    def discard_turn(self) -> None:
        """Forget the speech that has begun and is not over."""
        ...

    # the model's side

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Answer; returns the reply's number. Its events end with `ReplyDone`. Tools that it calls are told just
        before: a reply that is interrupted calls none. What they gave is added as a turn of role "tool", and answered
        like any other.
        """
        ...

    def interrupt(self, heard: int) -> None:
        """Stop the reply, whose listener has heard `heard` samples: the rest is cut from the model's memory. Of its
        events only `Interrupted` and `ReplyDone("interrupted")` still come. A written reply counts as read so far.
        """
        ...

    # what was said

    def add_turn(self, turn: Turn) -> int:
        """Add a turn to what was said before; returns its number. Speech without codes is encoded by the caller's
        thread, which takes its time. Errors: `UserError`.
        """
        ...

    def truncate(self, number: int, heard: int) -> None:
        """The listener had heard only `heard` samples of the reply `number`: the rest is cut from the model's memory.
        More than it holds, or a number unknown by now, changes nothing.
        """
        ...

    def delete_turn(self, number: int) -> None:
        """Cut a turn or reply from the model's memory. A number unknown by now changes nothing."""
        ...

    def configure(self, settings: SessionSettings) -> None:
        """New settings, from the next reply on. Errors: `UserError`."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """What happens, until the session is closed; one reader at a time."""
        ...

    def close(self) -> None:
        """Give the slot back. Any number of times."""
        ...


class Engine(Protocol):
    """Many sessions on one model."""

    @property
    def alive(self) -> bool:
        """Whether it works: false before it is started, once it is closed, and if it has failed for good."""
        ...

    def open(self, settings: SessionSettings) -> Session:
        """Lease a slot. Errors: `EngineFull` at once if there is none, `UserError` for bad settings."""
        ...

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """The codes `[T, K]` of a recording `pcm [N]`, to keep for greetings; on the caller's thread."""
        ...

    def stats(self) -> EngineStats:
        """How busy it is."""
        ...

    def add_step_observer(self, observer: Callable[[float], None]) -> None:
        """Call `observer` with the seconds of every step, on the engine's thread."""
        ...

    def start(self) -> None:
        """Begin to work, on a thread of its own."""
        ...

    def close(self, drain: float = 0.0) -> None:
        """Take nobody in; wait up to `drain` seconds for replies under way; end all sessions. Blocks."""
        ...


# turn taking


@dataclass(frozen=True)
class ServerVad:
    """A turn ends after so much silence. `threshold` of the probability of speech, times in milliseconds."""

    threshold: float = 0.5
    prefix_ms: int = 300  # heard before speech was noticed, taken as part of it
    silence_ms: int = 500
    idle_timeout_ms: int | None = None  # of silence after a reply, upon which the model speaks by itself
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class SemanticVad:
    """A turn ends when the model thinks that it is complete, after 8, 4 or 2 s at most (low, medium or auto, high)."""

    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class DialogueSettings:
    """How turns are taken; with `turn_detection` None by `commit_audio` and `clear_audio` only."""

    turn_detection: ServerVad | SemanticVad | None = ServerVad()
    speculate_ms: int = 200  # of silence, upon which an answer is begun that may be taken back; 0: never
    interrupt_ms: int = 300  # of speech that interrupt a reply; a shorter "mm-hm" or cough does not
    echo_guard: bool = True  # the model's own voice in the microphone does not interrupt it


# events that a dialogue adds to a session's


@dataclass(frozen=True)
class UserTurnCommitted:
    """The user's spoken turn `number` is over and counts; it lasted from sample `start` to `end` of the microphone."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class ReplyStarted:
    """The reply `number` is under way; what follows belongs to it, up to its `ReplyDone`."""

    number: int


@dataclass(frozen=True)
class IdleTimeout:
    """Nobody has spoken since sample `start` of the microphone; now is `end`."""

    start: int
    end: int


DialogueEvent = Event | UserTurnCommitted | ReplyStarted | IdleTimeout
