"""The commands of a session. They are executed in order on the engine's thread (`slot.Slot.handle`).

Turns and replies are named by their number, counted from 1 within a session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechgpt2.conversation import HistoryTurn
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.sessions.entries import EntryWriter, SavedSession


@dataclass(frozen=True)
class StartTurn:
    """The user begins to speak."""

    turn: int


@dataclass(frozen=True)
class AppendAudio:
    """More of the user's speech: `pcm [N]` float32 at 24 kHz, received at `time` (engine clock, seconds)."""

    pcm: np.ndarray
    time: float


@dataclass(frozen=True)
class EndTurn:
    """The user has finished speaking."""


@dataclass(frozen=True)
class Rollback:
    """The user has not finished: undo `EndTurn`, and remove the speculative `reply`, if there is one."""

    reply: int | None


@dataclass(frozen=True)
class DiscardTurn:
    """Remove the user's unfinished turn."""


@dataclass(frozen=True)
class AddTurn:
    """Add a whole turn: a typed one, a tool's result, or history."""

    turn: int
    content: HistoryTurn


@dataclass(frozen=True)
class Respond:
    """Generate a reply."""

    reply: int
    options: ReplyOptions


@dataclass(frozen=True)
class Truncate:
    """Only `played` samples of a reply were played: cut the rest from the model's memory."""

    reply: int
    played: int


@dataclass(frozen=True)
class DeleteTurn:
    """Cut a turn or reply from the model's memory."""

    turn: int


@dataclass(frozen=True)
class Configure:
    """Change the settings, from the next reply on."""

    settings: SessionSettings


@dataclass(frozen=True)
class Save:
    """Nothing before this can be rolled back any more: write it, if the session is saved."""


@dataclass(frozen=True)
class OpenSlot:
    """The session begins, perhaps where a saved one ended. Executed by the engine itself."""

    settings: SessionSettings
    saved: SavedSession | None = None
    writer: EntryWriter | None = None


@dataclass(frozen=True)
class CloseSlot:
    """The session is over. Executed by the engine itself."""


Command = (
    StartTurn
    | AppendAudio
    | EndTurn
    | Rollback
    | DiscardTurn
    | AddTurn
    | Respond
    | Truncate
    | DeleteTurn
    | Configure
    | Save
)


def must_wait(command: Command, encoding_end: bool, replying: bool) -> bool:
    """Return whether a command waits.

    Args:
        command: The command.
        encoding_end: Whether the user's turn has ended and some of it is not encoded yet.
        replying: Whether a reply is in progress.
    """
    if isinstance(command, Save):
        return encoding_end
    return isinstance(command, (StartTurn, AddTurn, Respond, Configure)) and (encoding_end or replying)


def created_number(command: Command) -> int | None:
    """Return the number of the turn or reply that a command creates; None if it creates none."""
    match command:
        case StartTurn(number) | AddTurn(number, _) | Respond(number, _):
            return number
    return None


def finalizes_history(command: Command, after_reply: bool) -> bool:
    """Return whether this command makes everything before it final.

    Args:
        command: The command.
        after_reply: Whether the last turn is a reply.
    """
    return isinstance(command, (StartTurn, AddTurn, Save)) or (isinstance(command, Respond) and after_reply)


def text_length(command: Command) -> int:
    """Return the characters that the engine has to tokenize for a command."""
    match command:
        case AddTurn(_, content):
            return len(content.text or "")
        case Respond(_, options):
            return len(options.text or "") + len(options.instructions or "")
        case Configure(settings):
            return len(settings.instructions or "")
    return 0
