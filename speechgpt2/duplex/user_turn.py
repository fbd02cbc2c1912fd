"""The user's spoken turn on its way from a microphone to an engine session, and the speculative reply to it.

A turn starts before it is noticed, so audio outside of turns is kept for a while. While a turn pauses, a reply is
generated speculatively and its events are held back. If the user goes on, the reply is rolled back and the audio in
between becomes part of the turn. If not, the turn is committed and the events are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from speechgpt2.duplex.protocol import Session
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, Event

MAX_PREFIX = 2 * SAMPLE_RATE  # samples kept outside of turns
MAX_UNDECIDED = 60 * SAMPLE_RATE  # samples kept of what may yet become a turn
NO_AUDIO = np.zeros(0, np.float32)


class UserTurn:
    """The current turn, or the audio before the next one.

    Args:
        session: The engine's session, which knows whether a turn is active (`user_speaking`).
        detected: Whether turns are detected; otherwise the client commits them.

    Attributes:
        position: Samples of the microphone so far.
        number: The turn's number.
        start: The sample at which it started.
        announced: Whether the client was told that speech has started.
        speculative_reply: The number of the reply that may still be rolled back.
        held_events: Its events so far; None while nothing is speculated.
    """

    def __init__(self, session: Session, detected: bool):
        self.session, self.detected = session, detected
        self.position = self.number = self.start = 0
        self.announced = False
        self.speculative_reply: int | None = None
        self.held_events: list[Event] | None = None
        self._before = NO_AUDIO  # audio since the last turn, or since the pause of this one
        self._uncommitted = NO_AUDIO  # audio of an active turn that the client has yet to commit

    @property
    def active(self) -> bool:
        """Whether the session takes in a turn."""
        return self.session.user_speaking

    @property
    def speculating(self) -> bool:
        """Whether there is a reply that may be rolled back."""
        return self.held_events is not None

    def append(self, pcm: np.ndarray) -> None:
        """Take the microphone's next samples `[N]`. If turns are not detected, they start one as soon as possible."""
        self.position += len(pcm)
        if not self.detected and not self.active and not self.session.replying:
            self.begin(self.position - len(pcm) - len(self._before), len(self._before))
        if not self.active:
            limit = MAX_UNDECIDED if self.speculating or not self.detected else MAX_PREFIX
            self._before = np.concatenate([self._before, pcm])[-limit:]
            return
        self.session.append_audio(pcm)
        if not self.detected:
            self._uncommitted = np.concatenate([self._uncommitted, pcm])[-MAX_UNDECIDED:]

    def begin(self, start: int, prefix: int) -> None:
        """Start a turn at sample `start`. Its first `prefix` samples have come before this call."""
        self.number, self.start = self.session.start_turn(), start
        audio = self._before[len(self._before) - min(prefix, len(self._before)) :]
        self._before = NO_AUDIO
        if len(audio):
            self.session.append_audio(audio)
        self._uncommitted = NO_AUDIO if self.detected else audio

    def begin_with_all(self) -> None:
        """Start a turn with all audio since the last one.

        Raises:
            UserError: There is none.
        """
        if not len(self._before):
            raise UserError("no audio has come since the last turn")
        self.begin(self.position - len(self._before), len(self._before))

    def speculate(self) -> None:
        """End the turn for now and begin to reply."""
        self.session.end_turn()
        self.held_events = []
        self.speculative_reply = self.session.respond()

    def rollback(self) -> None:
        """If there is a speculative reply, undo it and go on with the turn."""
        if self.held_events is None:
            return
        self.session.rollback()
        self.held_events = self.speculative_reply = None
        if len(self._before):
            self.session.append_audio(self._before)
        self._before = NO_AUDIO

    def commit(self) -> tuple[int, list[Event]] | None:
        """End the turn for good.

        Returns:
            The speculative reply and its events so far, which count now; None if there is none.
        """
        if self.active:
            self.session.end_turn()
        self.announced = False
        self._before, self._uncommitted = self._before[-MAX_PREFIX:], NO_AUDIO
        reply, events = self.speculative_reply, self.held_events
        self.held_events = self.speculative_reply = None
        return None if events is None or reply is None else (reply, events)

    def suspend(self) -> None:
        """Take the audio of a turn back that the client has not committed, for a later turn."""
        if self.active:
            self.session.discard_turn()
            self._before, self._uncommitted = self._uncommitted, NO_AUDIO

    def clear(self) -> None:
        """Forget all audio since the last turn."""
        self.rollback()
        if self.active:
            self.session.discard_turn()
        self.announced = False
        self._before = self._uncommitted = NO_AUDIO

    @contextmanager
    def respeculate(self) -> Iterator[None]:
        """Around a change of the history: a speculative reply is rolled back before and begun anew after it."""
        speculating = self.speculating
        self.rollback()
        yield
        if speculating:
            self.speculate()
