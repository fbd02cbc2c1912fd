"""What server, dialogue and engine agree on: settings, events, and three protocols. Knows no model.

    engine: Engine                                       # many sessions on one model
    session = engine.open(SessionSettings())             # a slot, or EngineFull at once
    session.start_turn(); session.append_audio(pcm); session.end_turn()
    session.respond()
    async for event in session.events(): ...             # Transcript, TextDelta, AudioDelta, ToolCall, ReplyDone

A session obeys: it is told when the user speaks. A `Dialogue` decides that, from all of a microphone's audio:

    dialogue: Dialogue                                   # made by speechgpt2.duplex.dialogue
    dialogue.append_audio(pcm)                           # any number of samples
    dialogue.commit_audio(); dialogue.clear_audio()      # turns that the client commits
    dialogue.add_turn(turn); dialogue.respond()
    dialogue.interrupt()
    async for event in dialogue.events(): ...            # DialogueEvent

    SpeechStarted ─► SpeechStopped ─► UserTurnCommitted ─► ReplyStarted ─► Transcript, TextDelta, AudioDelta …
        ─► ReplyDone
    on barge-in: Interrupted ─► ReplyDone("interrupted") ─► SpeechStarted, and on as above

Every call returns at once, from any thread. What was asked happens in the order of the calls; only an interruption or
a truncation takes effect before calls that still wait. Calls that do not fit raise `UserError` and change nothing. What
fails later comes as an `Error` event of this session. Turns and replies have
numbers, counted from 1 in the order in which they were begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from speechgpt2.types import Event, Speech, Tool, Turn


class EngineFull(Exception):
    """No slot is free, or the engine accepts no more sessions: come back later."""


@dataclass(frozen=True)
class SessionSettings:
    """How one session replies.

    Attributes:
        speak: Whether replies are spoken; otherwise they are written.
        instructions: Replace the model's own system line.
        greeting: What the model has said before all else. It is never dropped from memory.
        voice: Name of one of the engine's voices, whose greeting is used if none is given; None: the default.
        temperature: See `lm.sampling`, and so `top_k`, `top_p`, `seed`.
        max_patches: Limit of one reply. 512 are a minute of speech.
        paced: Whether speech comes only so far ahead of its playback; otherwise as fast as it is read.
        tools: Tools that the model may call, if it knows how to.
        require_tool: Whether every reply begins with a tool call; a name requires that tool.
    """

    speak: bool = True
    instructions: str | None = None
    greeting: Speech | None = None
    voice: str | None = None
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    seed: int = 0
    max_patches: int = 512
    paced: bool = True
    tools: tuple[Tool, ...] = ()
    require_tool: bool | str = False


@dataclass(frozen=True)
class ReplyOptions:
    """What one reply has of its own. None means as the session's settings say.

    Attributes:
        text: A text to read aloud, word for word, in place of an answer.
    """

    instructions: str | None = None
    speak: bool | None = None
    max_patches: int | None = None
    text: str | None = None
    tools: tuple[Tool, ...] | None = None
    require_tool: bool | str | None = None


@dataclass(frozen=True)
class EngineVoice:
    """A voice of an engine, which the greeting at the start of the context sets.

    Attributes:
        name: Its name.
        text: What the greeting says.
        default: Whether sessions have it that choose none.
    """

    name: str
    text: str
    default: bool = False


@dataclass(frozen=True)
class EngineStats:
    """How busy an engine is.

    Attributes:
        slots: Slots in all.
        used: Slots in use.
        replying: Sessions with a reply under way.
        steps: Steps so far.
        busy_seconds: Seconds that they took.
    """

    slots: int
    used: int
    replying: int
    steps: int
    busy_seconds: float


class Session(Protocol):
    """One conversation on one slot of an engine."""

    @property
    def replying(self) -> bool:
        """Whether a reply is under way."""
        ...

    @property
    def user_speaking(self) -> bool:
        """Whether a spoken turn of the user's is active."""
        ...

    @property
    def backlogged(self) -> bool:
        """Whether more was asked than is done: a client should wait before it asks for more."""
        ...

    def start_turn(self) -> int:
        """Start a spoken turn of the user's; not while a reply is under way. Returns the turn's number."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """Add `pcm [N]`, float32 at 24 kHz, to the active turn. It is taken in while the user speaks."""
        ...

    def end_turn(self) -> None:
        """End the active turn."""
        ...

    def rollback(self) -> None:
        """Undo `end_turn`, and the reply to it if there is one: the turn goes on, and the reply has no more events."""
        ...

    def discard_turn(self) -> None:
        """Forget the active turn."""
        ...

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn: typed, a tool's result, or history. Speech without codes is encoded on this thread.

        Returns:
            The turn's number.

        Raises:
            UserError: The turn cannot be understood, or the user speaks.
        """
        ...

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Generate a reply. Its events end with `ReplyDone`, its tool calls come just before.

        A reply that is interrupted calls no tools. A tool's result is a turn of role "tool", and is answered like any
        other.

        Returns:
            The reply's number.
        """
        ...

    def interrupt(self, played: int) -> None:
        """Stop the reply, of which `played` samples were heard. The rest is cut from the model's memory.

        Of its events only `Interrupted` and `ReplyDone("interrupted")` still come. What was written counts as read.
        """
        ...

    def truncate(self, number: int, played: int) -> None:
        """Cut what follows the first `played` samples of a reply from the model's memory, if it is still known."""
        ...

    def delete_turn(self, number: int) -> None:
        """Cut a turn or reply from the model's memory, if it is still known."""
        ...

    def configure(self, settings: SessionSettings) -> None:
        """Change the settings, from the next reply on.

        Raises:
            UserError: They cannot be used.
        """
        ...

    def events(self) -> AsyncIterator[Event]:
        """What happens, until the session is closed. For one reader at a time."""
        ...

    def close(self) -> None:
        """Give the slot back. May be called again."""
        ...


class Engine(Protocol):
    """Many sessions on one model."""

    @property
    def alive(self) -> bool:
        """Whether it works: not before it is started, once it is closed, or if it has failed for good."""
        ...

    @property
    def voices(self) -> tuple[EngineVoice, ...]:
        """The voices between which sessions may choose; none if the model has one only."""
        ...

    def open(self, settings: SessionSettings) -> Session:
        """Open a session.

        Raises:
            EngineFull: No slot is free.
            UserError: The settings cannot be used.
        """
        ...

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """The codes `[T, K]` of `pcm [N]`, to keep for greetings. Computed on this thread."""
        ...

    def stats(self) -> EngineStats:
        """How busy it is."""
        ...

    def add_step_observer(self, observer: Callable[[float], None]) -> None:
        """Have `observer` called with the seconds of every step, on the engine's thread."""
        ...

    def start(self) -> None:
        """Begin to work, on a thread of its own."""
        ...

    def close(self, drain: float = 0.0) -> None:
        """Accept no more sessions, wait up to `drain` seconds for replies under way, end all sessions. Blocks."""
        ...


# turn taking


@dataclass(frozen=True)
class ServerVad:
    """A turn ends after a fixed silence.

    Attributes:
        threshold: Probability of speech from which a block counts as voice.
        prefix_ms: Audio before the voice was noticed that belongs to the turn.
        silence_ms: Silence that ends a turn.
        idle_timeout_ms: Silence after a reply upon which the model speaks by itself; None: never.
        create_response: Whether the end of a turn is answered.
        interrupt_response: Whether a voice interrupts a reply.
    """

    threshold: float = 0.5
    prefix_ms: int = 300
    silence_ms: int = 500
    idle_timeout_ms: int | None = None
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class SemanticVad:
    """A turn ends when the model finds it complete, after 8, 4 or 2 s at most (low, medium or auto, high).

    Until the model has judged, 500 ms of silence end it.
    """

    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class DialogueSettings:
    """How turns are taken.

    Attributes:
        turn_detection: How turns end; None: only by `commit_audio` and `clear_audio`.
        speculate_ms: Silence after which a speculative reply is begun; 0: never.
        interrupt_ms: Voice that interrupts a reply. A shorter "mm-hm" or cough does not.
        echo_guard: Whether the model's own voice in the microphone is ignored.
    """

    turn_detection: ServerVad | SemanticVad | None = ServerVad()
    speculate_ms: int = 200
    interrupt_ms: int = 300
    echo_guard: bool = True


@dataclass(frozen=True)
class UserTurnCommitted:
    """The user's spoken turn `number` has ended and counts. It lasted from sample `start` to `end`."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class ReplyStarted:
    """The reply `number` is under way. What follows belongs to it, up to its `ReplyDone`."""

    number: int


@dataclass(frozen=True)
class IdleTimeout:
    """Nobody has spoken since sample `start` of the microphone; now is sample `end`."""

    start: int
    end: int


DialogueEvent = Event | UserTurnCommitted | ReplyStarted | IdleTimeout


class Dialogue(Protocol):
    """A dialogue with one user: it decides who speaks, and its session obeys."""

    @property
    def backlogged(self) -> bool:
        """Whether a client should wait before it asks for more."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """Take the microphone's next samples, `pcm [N]` float32 at 24 kHz."""
        ...

    def commit_audio(self) -> None:
        """Make a turn of the audio since the last one, whatever was detected.

        Raises:
            UserError: There is none.
        """
        ...

    def clear_audio(self) -> None:
        """Forget the audio since the last turn."""
        ...

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn: typed, a tool's result, or history. A detected turn ends before it. Returns its number."""
        ...

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Answer all that was said. Returns the reply's number.

        Raises:
            UserError: A reply is under way.
        """
        ...

    def interrupt(self, played: int | None = None) -> None:
        """Stop the reply, of which `played` samples were heard; None: as many as can have been played by now.

        Raises:
            UserError: There is no reply.
        """
        ...

    def truncate(self, number: int, played: int) -> None:
        """Cut what follows the first `played` samples of a reply from the model's memory."""
        ...

    def delete_turn(self, number: int) -> None:
        """Cut a turn or reply from the model's memory."""
        ...

    def configure(self, settings: DialogueSettings | None = None, session: SessionSettings | None = None) -> None:
        """Change settings; None: as they were.

        Raises:
            UserError: They cannot be used, and nothing has changed.
        """
        ...

    def events(self) -> AsyncIterator[DialogueEvent]:
        """What happens, until the dialogue is closed. For one reader, who plays the audio as it comes."""
        ...

    def close(self) -> None:
        """Give the session's slot back. May be called again."""
        ...
