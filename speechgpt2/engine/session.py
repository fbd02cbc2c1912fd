"""A session as its caller sees it: calls from any thread, events to one reader.

What a call asks is handed to the engine's thread in order; whether it fits is decided here and at once, by what the
caller was told so far.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import numpy as np

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.mailbox import Mailbox
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, Event, Interrupted, ReplyDone, Turn

if TYPE_CHECKING:
    from speechgpt2.engine.engine import Engine
    from speechgpt2.engine.slot import Slot

MOST_UNHEARD = 600 * SAMPLE_RATE  # samples of a turn that may wait to be taken in
MOST_ASKED = 64  # things that the engine was asked to do and has not yet done, beyond which a caller had better wait
CHARACTERS = 256  # of a text that count as one more thing: they take time on the engine's thread
WORD = 16  # characters that a patch holds at most, in all of a text: a longer one is refused without being read


class Session:
    """See `speechgpt2.duplex.protocol.Session`. `number` is its slot's; `slot` the engine's own, and its thread's."""

    def __init__(self, engine: Engine, number: int, mailbox: Mailbox):
        self._engine, self.number, self.mailbox = engine, number, mailbox
        self.slot: Slot | None = None
        self._numbers = 0
        self._unheard = 0  # samples handed over and not yet taken up
        self._asked = 0  # things
        self._hearing = False
        self._tentative = False  # the latest turn may be taken back
        self._latest: int | None = None  # reply

    @property
    def replying(self) -> bool:
        """Whether a reply is under way, whose end was not read yet."""
        return self.mailbox.reply is not None

    @property
    def backlogged(self) -> bool:
        """See the protocol; a session that is closed is done."""
        return self._asked > MOST_ASKED and self.mailbox.open

    # the user's side

    def start_turn(self) -> int:
        with self.mailbox.lock:
            self._must(not self._hearing, "the user speaks already")
            self._must(not self.replying, "a reply is under way; interrupt it first")
            self._hearing, self._tentative = True, False
            number = self._number()
            self._post(lambda slot: slot.start_turn(number))
            return number

    def append_audio(self, pcm: np.ndarray) -> None:
        pcm = np.array(pcm, np.float32)  # a copy: the caller may use its own again
        if pcm.ndim != 1 or not np.isfinite(pcm).all():
            raise UserError("sound must be a row of samples, float32 at 24 kHz, all of them numbers")
        with self.mailbox.lock:
            self._must(self._hearing, "start_turn comes before append_audio")
            waiting = self._unheard + (self.slot.backlog if self.slot else 0)
            self._must(waiting + len(pcm) <= MOST_UNHEARD, "sound comes in faster than it can be heard")
            self._unheard += len(pcm)
            self._post(lambda slot: self._give(slot, pcm))

    def end_turn(self) -> None:
        with self.mailbox.lock:
            self._must(self._hearing, "nobody speaks")
            self._hearing, self._tentative, self._latest = False, True, None
            self._post(lambda slot: slot.end_turn())

    def rollback(self) -> None:
        with self.mailbox.lock:
            self._must(self._tentative, "there is no turn that could be taken back")
            self.mailbox.silence()
            reply, self._latest = self._latest, None
            self._hearing, self._tentative = True, False
            self._post(lambda slot: slot.rollback(reply))

    def discard_turn(self) -> None:
        with self.mailbox.lock:
            self._must(self._hearing, "nobody speaks")
            self._hearing = False
            self._post(lambda slot: slot.discard_turn())

    # the model's side

    def respond(self, options: ReplyOptions | None = None) -> int:
        with self.mailbox.lock:
            self._must(not self.replying, "a reply is under way already")
            self._must(not self._hearing, "the user has not finished speaking")
            options = options or ReplyOptions()
            texts = self._short(options.text or "") + self._short(options.instructions or "")
            number = self._latest = self._number()
            self.mailbox.begin(number)
            self._post(lambda slot: slot.respond(number, options), texts)
            return number

    def interrupt(self, heard: int) -> None:
        with self.mailbox.lock:
            number, heard = self._latest, max(0, min(heard, self.mailbox.made))
            if number is None:
                raise UserError("there is no reply that could be interrupted")
            self._tentative = False
            unfinished = self.mailbox.silence()
            self.mailbox.put(None, Interrupted(heard))
            if unfinished:
                self.mailbox.put(None, ReplyDone("interrupted"))
            self._post(lambda slot: slot.truncate(number, heard))

    # what was said

    def add_turn(self, turn: Turn) -> int:
        history = self._engine.as_history(turn)
        with self.mailbox.lock:
            self._must(not self._hearing, "the user speaks; other turns come before or after")
            text = self._short(history.text or "")
            self._tentative = False
            number = self._number()
            self._post(lambda slot: slot.add_turn(number, history), text)
            return number

    def truncate(self, number: int, heard: int) -> None:
        with self.mailbox.lock:
            if self.mailbox.reply == number:
                self.interrupt(heard)
            else:
                self._tentative = False
                self._post(lambda slot: slot.truncate(number, heard))

    def delete_turn(self, number: int) -> None:
        with self.mailbox.lock:
            self._tentative = False
            self._post(lambda slot: slot.delete_turn(number))

    def configure(self, settings: SessionSettings) -> None:
        settings = self._engine.with_codes(settings)
        with self.mailbox.lock:
            self._post(lambda slot: slot.configure(settings), self._short(settings.instructions or ""))

    def events(self) -> AsyncIterator[Event]:
        return self.mailbox.read()

    def close(self) -> None:
        self.mailbox.close()
        self._engine.release(self)

    # inside

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _must(self, condition: bool, otherwise: str) -> None:
        if not self.mailbox.open:
            raise UserError("this session is closed")
        if not condition:
            raise UserError(otherwise)

    def _give(self, slot: Slot, pcm: np.ndarray) -> None:
        with self.mailbox.lock:
            self._unheard -= len(pcm)
        slot.hear(pcm, self._engine.clock())

    def _short(self, text: str) -> str:
        """The text. Errors: `UserError` if no memory holds it."""
        most = WORD * self._engine.config.context
        if len(text) > most:
            raise UserError(f"a text of {len(text):,} characters is too long, at most {most:,} can be remembered")
        return text

    def _post(self, action: Callable[[Slot], None], text: str = "") -> None:
        """Ask the engine for something; `text` is what it has to read for that."""
        weight = 1 + len(text) // CHARACTERS

        def do(slot: Slot) -> None:
            with self.mailbox.lock:
                self._asked -= weight
            action(slot)

        with self.mailbox.lock:
            self._asked += weight
        self._engine.post(self, do)
