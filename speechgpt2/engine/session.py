"""A session as its client sees it: calls from any thread, events for one reader.

A call is checked here at once, against what the client knows from the events that it has read. Then it becomes a
command, which the engine's thread executes in order.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np

from speechgpt2.audio import check_audio
from speechgpt2.duplex import protocol
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine import commands
from speechgpt2.engine.commands import Command, text_length
from speechgpt2.engine.event_queue import SessionEventQueue
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import EntryWriter
from speechgpt2.types import SAMPLE_RATE, Event, Interrupted, ReplyDone, Turn

if TYPE_CHECKING:
    from speechgpt2.engine.engine import Engine
    from speechgpt2.engine.slot import Slot

MAX_QUEUED_SAMPLES = 600 * SAMPLE_RATE  # of a turn's audio that may wait to be encoded
MAX_BACKLOG = 64  # commands that may wait before the session counts as backlogged
CHARACTERS_PER_COMMAND = 256  # every 256 characters of a text count as another command, because tokenizing takes time
MAX_CHARACTERS_PER_PATCH = 16  # a text with more does not fit the context, and is refused before it is tokenized


class Session(protocol.Session):
    """A session as its client sees it. The protocol describes its methods.

    Args:
        engine: The engine of the session.
        slot_number: The number of its slot.
        event_queue: The queue of events for the client. Its lock guards the session's own state, too.
        last_number: The highest turn or reply number of the resumed session; 0 for a new one.
        writer: Where the session is saved.

    Attributes:
        slot: The session's slot, which only the engine's thread changes.
        backlog: The commands that the engine has not executed yet.
    """

    def __init__(
        self,
        engine: Engine,
        slot_number: int,
        event_queue: SessionEventQueue,
        last_number: int = 0,
        writer: EntryWriter | None = None,
    ):
        self._engine, self.slot_number, self.event_queue, self.writer = engine, slot_number, event_queue, writer
        self.slot: Slot | None = None
        self._last_number = last_number
        self.backlog = CommandBacklog()
        self._user_speaking = False
        self._can_roll_back = False
        self._latest_reply: int | None = None

    @property
    def replying(self) -> bool:
        """Whether a reply is in progress: the client has not read its end."""
        return self.event_queue.reply is not None

    @property
    def user_speaking(self) -> bool:
        """Whether a spoken turn of the user is in progress."""
        return self._user_speaking

    @property
    def backlogged(self) -> bool:
        """Whether many commands wait; never for a closed session."""
        return self.backlog.commands > MAX_BACKLOG and self.event_queue.open

    # the user's turn

    def start_turn(self) -> int:
        with self.event_queue.lock:
            self._check(not self._user_speaking, "the user's turn has already started")
            self._check(not self.replying, "a reply is in progress; interrupt it first")
            self._user_speaking, self._can_roll_back = True, False
            command = commands.StartTurn(self._next_number)
            self._last_number = command.turn
            self._send(command)
            return command.turn

    def append_audio(self, pcm: np.ndarray) -> None:
        pcm = check_audio(pcm)
        with self.event_queue.lock:
            self._check(self._user_speaking, "no active user turn: start_turn comes before append_audio")
            queued = self.backlog.samples + (self.slot.input_backlog if self.slot else 0)
            self._check(queued + len(pcm) <= MAX_QUEUED_SAMPLES, "audio comes in faster than it can be encoded")
            self._send(commands.AppendAudio(pcm, self._engine.clock()))

    def end_turn(self) -> None:
        with self.event_queue.lock:
            self._check(self._user_speaking, "no active user turn")
            self._user_speaking, self._can_roll_back, self._latest_reply = False, True, None
            self._send(commands.EndTurn())

    def rollback(self) -> None:
        with self.event_queue.lock:
            self._check(self._can_roll_back, "no turn can be rolled back")
            self.event_queue.drop_reply()
            reply, self._latest_reply = self._latest_reply, None
            self._user_speaking, self._can_roll_back = True, False
            self._send(commands.Rollback(reply))

    def discard_turn(self) -> None:
        with self.event_queue.lock:
            self._check(self._user_speaking, "no active user turn")
            self._user_speaking = False
            self._send(commands.DiscardTurn())

    # replies

    def respond(self, options: ReplyOptions | None = None) -> int:
        with self.event_queue.lock:
            self._check(not self.replying, "a reply is already in progress")
            self._check(not self._user_speaking, "the user's turn is still active")
            command = commands.Respond(self._next_number, options or ReplyOptions())
            _check_length(command, self._engine.config.context)
            self._last_number = self._latest_reply = command.reply
            self.event_queue.begin_reply(command.reply)
            self._send(command)
            return command.reply

    def interrupt(self, played: int) -> None:
        # A `Dialogue` sends its own `Interrupted` instead, also if the reply is complete and still played.
        with self.event_queue.lock:
            number, played = self._latest_reply, max(0, min(played, self.event_queue.reply_samples))
            if number is None:
                raise UserError("no reply can be interrupted")
            self._can_roll_back = False
            unfinished = self.event_queue.drop_reply()
            self.event_queue.put(None, Interrupted(played))
            if unfinished:
                self.event_queue.put(None, ReplyDone("interrupted"))
            self._send(commands.Truncate(number, played))

    # history

    def add_turn(self, turn: Turn) -> int:
        content = self._engine.inputs.history_turn(turn)
        with self.event_queue.lock:
            self._check(not self._user_speaking, "the user's turn is still active; add turns before or after it")
            command = commands.AddTurn(self._next_number, content)
            _check_length(command, self._engine.config.context)
            self._can_roll_back, self._last_number = False, command.turn
            self._send(command)
            return command.turn

    def truncate(self, number: int, played: int) -> None:
        with self.event_queue.lock:
            if self.event_queue.reply == number:
                self.interrupt(played)
            else:
                self._can_roll_back = False
                self._send(commands.Truncate(number, played))

    def delete_turn(self, number: int) -> None:
        with self.event_queue.lock:
            self._can_roll_back = False
            self._send(commands.DeleteTurn(number))

    def configure(self, settings: SessionSettings) -> None:
        command = commands.Configure(self._engine.inputs.prepare_settings(settings))
        with self.event_queue.lock:
            _check_length(command, self._engine.config.context)
            self._send(command)

    def save(self) -> None:
        if self.writer is not None:
            self._send(commands.Save())

    def events(self) -> AsyncIterator[Event]:
        return self.event_queue.read()

    def close(self) -> None:
        self.event_queue.close()
        self._engine.close_session(self)

    # internal

    def _send(self, command: Command) -> None:
        self.backlog.add(command)
        self._engine.send(self, command)

    @property
    def _next_number(self) -> int:
        return self._last_number + 1

    def _check(self, condition: bool, error: str) -> None:
        if not self.event_queue.open:
            raise UserError("this session is closed")
        if not condition:
            raise UserError(error)


class CommandBacklog:
    """Counts the commands of a session that the engine has not executed yet. Calls may come from any thread.

    Attributes:
        commands: Number of commands; a command with a long text counts as several.
        samples: Samples of their audio.
    """

    def __init__(self) -> None:
        self.commands = self.samples = 0
        self._lock = threading.Lock()

    def add(self, command: Command) -> None:
        """Count a command that was sent."""
        self._change(command, +1)

    def remove(self, command: Command) -> None:
        """Count a command as executed."""
        self._change(command, -1)

    def _change(self, command: Command, sign: int) -> None:
        with self._lock:
            self.commands += sign * (1 + text_length(command) // CHARACTERS_PER_COMMAND)
            if isinstance(command, commands.AppendAudio):
                self.samples += sign * len(command.pcm)


def _check_length(command: Command, context: int) -> None:
    """Raise `UserError` if the text of a command cannot fit a context of so many patches."""
    length, limit = text_length(command), MAX_CHARACTERS_PER_PATCH * context
    if length > limit:
        raise UserError(f"a text of {length:,} characters is too long; at most {limit:,} can be remembered")
