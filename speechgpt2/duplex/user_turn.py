"""The user's spoken turn between the microphone and the engine's session, and the speculative reply to it.

A turn starts before it is detected, so audio outside turns is kept for a while. While a turn pauses, a reply is
generated speculatively and its events are held back. If the user continues, the reply is rolled back and the audio
since the pause becomes part of the turn. Otherwise the turn is committed and the events are released.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from speechgpt2.duplex.protocol import Session
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, Event

MAX_PREFIX = 2 * SAMPLE_RATE  # samples kept outside turns
MAX_UNCOMMITTED = 60 * SAMPLE_RATE  # samples kept of audio that may still become part of a turn
NO_AUDIO = np.zeros(0, np.float32)


class UserTurn:
    """The current turn, or the audio before the next one.

    Args:
        session: The engine's session, which knows whether a turn is active (`user_speaking`).
        detects_turns: Whether turns are detected; otherwise the client commits them.

    Attributes:
        position: Samples of the microphone so far.
        number: The turn's number.
        start: The sample at which it started.
        announced: Whether the client has received `SpeechStarted`.
        speculative_reply: The number of the reply that may still be rolled back.
        held_events: Events of the speculative reply; None if there is no such reply.
    """

    def __init__(self, session: Session, detects_turns: bool):
        self.session, self.detects_turns = session, detects_turns
        self.position = self.number = self.start = 0
        self.announced = False
        self.speculative_reply: int | None = None
        self.held_events: list[Event] | None = None
        self._buffered = NO_AUDIO  # audio since the last turn, or since the pause of this one
        self._uncommitted = NO_AUDIO  # audio of an active turn that the client has not committed yet

    @property
    def active(self) -> bool:
        """Whether a turn is active in the session."""
        return self.session.user_speaking

    @property
    def speculating(self) -> bool:
        """Whether there is a speculative reply."""
        return self.held_events is not None

    def append(self, pcm: np.ndarray) -> None:
        """Add the microphone's next samples `[N]`. If turns are not detected, a turn starts as soon as possible."""
        self.position += len(pcm)
        if not self.detects_turns and not self.active and not self.session.replying:
            self.begin(self.position - len(pcm) - len(self._buffered), len(self._buffered))
        if not self.active:
            limit = MAX_UNCOMMITTED if self.speculating or not self.detects_turns else MAX_PREFIX
            self._buffered = np.concatenate([self._buffered, pcm])[-limit:]
            return
        self.session.append_audio(pcm)
        if not self.detects_turns:
            self._uncommitted = np.concatenate([self._uncommitted, pcm])[-MAX_UNCOMMITTED:]

    def begin(self, start: int, lookback: int) -> None:
        """Start a turn at sample `start`. Its first `lookback` samples are already in the buffer."""
        self.number, self.start = self.session.start_turn(), start
        audio = self._buffered[len(self._buffered) - min(lookback, len(self._buffered)) :]
        self._buffered = NO_AUDIO
        if len(audio):
            self.session.append_audio(audio)
        self._uncommitted = NO_AUDIO if self.detects_turns else audio

    def begin_with_buffered_audio(self) -> None:
        """Start a turn with all audio since the last one.

        Raises:
            UserError: There is no such audio.
        """
        if not len(self._buffered):
            raise UserError("no audio has come since the last turn")
        self.begin(self.position - len(self._buffered), len(self._buffered))

    def speculate(self) -> None:
        """End the turn provisionally and start a speculative reply."""
        self.session.end_turn()
        self.held_events = []
        self.speculative_reply = self.session.respond()

    def rollback(self) -> None:
        """If there is a speculative reply, remove it and continue the turn."""
        if self.held_events is None:
            return
        self.session.rollback()
        self.held_events = self.speculative_reply = None
        if len(self._buffered):
            self.session.append_audio(self._buffered)
        self._buffered = NO_AUDIO

    def commit(self) -> tuple[int, list[Event]] | None:
        """End the turn for good.

        Returns:
            The number of the speculative reply and its events so far; None if there is no such reply.
        """
        if self.active:
            self.session.end_turn()
        self.announced = False
        self._buffered, self._uncommitted = self._buffered[-MAX_PREFIX:], NO_AUDIO
        reply, events = self.speculative_reply, self.held_events
        self.held_events = self.speculative_reply = None
        return None if events is None or reply is None else (reply, events)

    def postpone(self) -> None:
        """Take the uncommitted turn out of the session, and keep its audio for the next turn."""
        if self.active:
            self.session.discard_turn()
            self._buffered, self._uncommitted = self._uncommitted, NO_AUDIO

    def clear(self) -> None:
        """Drop all audio since the last turn."""
        self.rollback()
        if self.active:
            self.session.discard_turn()
        self.announced = False
        self._buffered = self._uncommitted = NO_AUDIO

    @contextmanager
    def respeculate(self) -> Iterator[None]:
        """Roll a speculative reply back, change the history in the `with` block, and start the reply again."""
        speculating = self.speculating
        self.rollback()
        yield
        if speculating:
            self.speculate()
