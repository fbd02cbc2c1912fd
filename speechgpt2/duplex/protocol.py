"""The interfaces between server, dialogue and engine: settings, events, and three protocols. No model is imported.

    engine: Engine                                       # many sessions on one model
    session = engine.open(SessionSettings())             # a slot, or EngineFull at once
    session.start_turn(); session.append_audio(pcm); session.end_turn()
    session.respond()
    async for event in session.events(): ...             # Transcript, TextDelta, AudioDelta, ToolCall, ReplyDone

A session does not detect turns: its caller says when the user speaks. A `Dialogue` decides that, from all audio of a
microphone:

    dialogue: Dialogue                                   # made by speechgpt2.duplex.dialogue
    dialogue.append_audio(pcm)                           # any number of samples
    dialogue.commit_audio(); dialogue.clear_audio()      # turns that the client commits
    dialogue.add_turn(turn); dialogue.respond()
    dialogue.interrupt()
    async for event in dialogue.events(): ...            # DialogueEvent

    SpeechStarted ─► SpeechStopped ─► UserTurnCommitted ─► ReplyStarted ─► Transcript, TextDelta, AudioDelta …
        ─► ReplyDone
    on barge-in: Interrupted ─► ReplyDone("interrupted") ─► SpeechStarted, and on as above

Every call returns at once, on any thread. Calls take effect in their order; only an interruption or a truncation
overtakes calls that still wait. A call that is not possible raises `UserError` and changes nothing. A later failure
comes as an `Error` event of this session. Turns and replies are numbered from 1 in the order of their creation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from speechgpt2.sessions.entries import EntryWriter, Header, SavedSession
from speechgpt2.style import NORMAL, Style
from speechgpt2.types import Event, Speech, Tool, Turn


class EngineFull(Exception):
    """No slot is free, or the engine accepts no more sessions; try again later."""


@dataclass(frozen=True)
class SessionSettings:
    """The settings of one session.

    Attributes:
        speak: Whether replies are spoken; otherwise they are written.
        instructions: Text that replaces the model's own system line.
        greeting: Speech with which the model has opened the conversation. It is never dropped from memory.
        voice: One of the engine's voices, whose greeting is used if none is given; None: the default.
        temperature: See `lm.sampling`, as for `top_k`, `top_p` and `seed`. None: as the model is sampled by default.
        max_patches: Limit of one reply. 512 patches are a minute of speech.
        paced: Whether speech is generated only `buffer_seconds` ahead of its playback; otherwise as fast as it is read.
        tools: Tools that the model may call, if it was trained to.
        require_tool: Whether every reply begins with a tool call; a name requires that tool.
        style: How replies are spoken, unless the user asks for another style.
        speed: Factor on the style's speaking rate; 1.0 leaves it.
        response_schema: A JSON schema that the text of written replies follows, unless they call a tool.
    """

    speak: bool = True
    instructions: str | None = None
    greeting: Speech | None = None
    voice: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    max_patches: int = 512
    paced: bool = True
    tools: tuple[Tool, ...] = ()
    require_tool: bool | str = False
    response_schema: dict[str, Any] | None = None
    style: Style = NORMAL
    speed: float = 1.0


@dataclass(frozen=True)
class ReplyOptions:
    """Options of one reply. None means: as in the session's settings.

    Attributes:
        text: A text to say instead of an answer. It is read aloud, or with `speak=False` written.
    """

    instructions: str | None = None
    speak: bool | None = None
    max_patches: int | None = None
    text: str | None = None
    tools: tuple[Tool, ...] | None = None
    require_tool: bool | str | None = None
    style: Style | None = None
    speed: float | None = None


@dataclass(frozen=True)
class EngineVoice:
    """A voice of an engine. The greeting at the start of the context sets it.

    Attributes:
        name: The voice's name.
        text: The text of its greeting.
        default: Whether sessions without a chosen voice use it.
    """

    name: str
    text: str
    default: bool = False


@dataclass(frozen=True)
class EngineStats:
    """The load of an engine.

    Attributes:
        slots: Number of slots.
        used: Slots in use.
        replying: Sessions with a reply in progress.
        steps: Steps so far.
        busy_seconds: Total duration of the steps, in seconds.
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
        """Whether a reply is in progress."""
        ...

    @property
    def user_speaking(self) -> bool:
        """Whether a spoken turn of the user is active."""
        ...

    @property
    def backlogged(self) -> bool:
        """Whether many calls wait for the engine. A client should wait then."""
        ...

    def start_turn(self) -> int:
        """Start a spoken turn of the user, which is an error while a reply is in progress. Returns its number."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """Add `pcm [N]`, float32 at 24 kHz, to the active turn. It is encoded and prefilled while the user speaks."""
        ...

    def end_turn(self) -> None:
        """End the active turn."""
        ...

    def rollback(self) -> None:
        """Undo `end_turn` and remove the reply to the turn, if there is one. The turn continues."""
        ...

    def discard_turn(self) -> None:
        """Remove the active turn."""
        ...

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn: a typed one, a tool's result, or history. Speech without codes is encoded on this thread.

        Returns:
            The turn's number.

        Raises:
            UserError: The turn is invalid, or the user speaks.
        """
        ...

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Generate a reply. Its events end with tool calls, if there are any, and `ReplyDone`.

        An interrupted reply calls no tools. A tool's result is a turn of role "tool"; `respond` answers it.

        Returns:
            The reply's number.
        """
        ...

    def interrupt(self, played: int) -> None:
        """Stop the reply, of which `played` samples were played. The rest is cut from the model's memory.

        Of its events only `Interrupted` and `ReplyDone("interrupted")` still come. A written reply stays in memory.
        """
        ...

    def truncate(self, number: int, played: int) -> None:
        """Keep only the first `played` samples of a reply in the model's memory, if it is still there."""
        ...

    def delete_turn(self, number: int) -> None:
        """Remove a turn or reply from the model's memory, if it is still there."""
        ...

    def configure(self, settings: SessionSettings) -> None:
        """Change the settings, from the next reply on.

        Raises:
            UserError: The settings are invalid.
        """
        ...

    def save(self) -> None:
        """Write what is new to the saved session, if there is one. The turns so far will not be rolled back."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """Yield the session's events, until it is closed. For one reader at a time."""
        ...

    def close(self) -> None:
        """Free the slot. May be called again."""
        ...


class Engine(Protocol):
    """Many sessions on one model."""

    @property
    def alive(self) -> bool:
        """Whether the engine runs: it is started, not closed, and has not failed."""
        ...

    @property
    def voices(self) -> tuple[EngineVoice, ...]:
        """The voices that sessions may choose; empty if the model has only one."""
        ...

    @property
    def reads_aloud(self) -> bool:
        """Whether the model can read a given text (`ReplyOptions.text`)."""
        ...

    @property
    def calls_tools(self) -> bool:
        """Whether the model was trained to call tools; otherwise its prompt lists none."""
        ...

    def open(
        self, settings: SessionSettings, saved: SavedSession | None = None, writer: EntryWriter | None = None
    ) -> Session:
        """Open a session.

        Args:
            settings: Its settings.
            saved: A saved session to resume.
            writer: Where the session is saved. It is closed after the session's last entry.

        Raises:
            EngineFull: No slot is free.
            UserError: The settings are invalid, or the saved session is that of another model.
        """
        ...

    def session_header(self, id: str, model: str, owner: str) -> Header:
        """Return the first line of a session that is going to be saved. For the arguments see `Header`."""
        ...

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode `pcm [N]` to codes `[T, K]` on this thread, for example a greeting."""
        ...

    def stats(self) -> EngineStats:
        """Return the engine's load."""
        ...

    def add_step_observer(self, observer: Callable[[float], None]) -> None:
        """Call `observer` with the seconds of every step, on the engine's thread."""
        ...

    def start(self) -> None:
        """Start the engine's thread."""
        ...

    def close(self, drain: float = 0.0) -> None:
        """Accept no more sessions, wait up to `drain` seconds for replies in progress, end all sessions. Blocks."""
        ...


# turn taking


@dataclass(frozen=True)
class ServerVad:
    """A turn ends after a fixed silence.

    Attributes:
        threshold: Probability of speech from which a block counts as voice.
        prefix_ms: Audio before the start of the voice that belongs to the turn.
        silence_ms: Silence that ends a turn.
        idle_timeout_ms: Silence after a reply after which the model speaks again; None: never.
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
    """A turn ends as the model decides.

    If the model finds the turn complete, it ends at once. If it finds it unfinished, it ends after 8, 4 or 2 s of
    silence (eagerness low, medium or auto, high). If it has not decided within 500 ms of silence, the turn ends then.
    """

    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class DialogueSettings:
    """The settings of turn taking.

    Attributes:
        turn_detection: How turns end; None: only by `commit_audio` and `clear_audio`.
        speculate_ms: Silence after which a speculative reply starts; 0: no speculative replies. With `SemanticVad` it
            starts earlier, since the model has to tell whether the turn is complete.
        interrupt_ms: Voice that interrupts a reply. A shorter "mm-hm" or cough does not.
        echo_guard: Whether the model's own voice in the microphone is ignored.
    """

    turn_detection: ServerVad | SemanticVad | None = ServerVad()
    speculate_ms: int = 200
    interrupt_ms: int = 300
    echo_guard: bool = True


@dataclass(frozen=True)
class UserTurnCommitted:
    """The user's spoken turn `number` has ended for good. It lasted from sample `start` to `end`."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class ReplyStarted:
    """The reply `number` has started. The next events belong to it, up to its `ReplyDone`."""

    number: int


@dataclass(frozen=True)
class IdleTimeout:
    """Nobody has spoken from sample `start` of the microphone to sample `end`, which is now."""

    start: int
    end: int


DialogueEvent = Event | UserTurnCommitted | ReplyStarted | IdleTimeout


class Dialogue(Protocol):
    """A dialogue with one user. It decides who speaks, and controls a session."""

    @property
    def backlogged(self) -> bool:
        """Whether many calls wait for the engine. A client should wait then."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """Add the microphone's next samples, `pcm [N]` float32 at 24 kHz."""
        ...

    def commit_audio(self) -> None:
        """Commit the audio since the last turn as a turn, independent of turn detection.

        Raises:
            UserError: There is no such audio.
        """
        ...

    def clear_audio(self) -> None:
        """Drop the audio since the last turn."""
        ...

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn (typed, a tool's result or history) after the end of a detected one. Returns its number."""
        ...

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Generate a reply to the conversation. Returns the reply's number.

        Raises:
            UserError: A reply is in progress.
        """
        ...

    def interrupt(self, played: int | None = None) -> None:
        """Stop the reply, of which `played` samples were played; None: as many as `duplex.playback` estimates.

        Raises:
            UserError: There is no reply.
        """
        ...

    def truncate(self, number: int, played: int) -> None:
        """Keep only the first `played` samples of a reply in the model's memory."""
        ...

    def delete_turn(self, number: int) -> None:
        """Remove a turn or reply from the model's memory."""
        ...

    def configure(self, settings: DialogueSettings | None = None, session: SessionSettings | None = None) -> None:
        """Change settings; None leaves them as they are.

        Raises:
            UserError: The settings are invalid. Nothing is changed then.
        """
        ...

    def events(self) -> AsyncIterator[DialogueEvent]:
        """Yield the dialogue's events, until it is closed. For one reader, which plays audio as soon as it comes."""
        ...

    def close(self) -> None:
        """Free the session's slot. May be called again."""
        ...
