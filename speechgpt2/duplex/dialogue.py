"""A dialogue with one person: a microphone's sound in, turns and replies out. It decides who speaks; a session obeys.

                       ┌► VoiceActivity ─► EchoGuard ─► TurnTaker ──┐ Begin, Pause, Resume, End, Interrupt, Idle
    append_audio ─────────┤                                            ▼
                       └──────────────────────────────────► engine session ──► events, held while a turn is in doubt

The answer is begun at the first silence (`Pause`), its events held back. If the user goes on, it is taken back, and
what was heard in between becomes part of the turn; if not, what is there already is told at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import numpy as np

from speechgpt2.duplex.detection import turn_settings
from speechgpt2.duplex.echo import EchoGuard
from speechgpt2.duplex.mailbox import Mailbox
from speechgpt2.duplex.playback import Playback
from speechgpt2.duplex.protocol import (
    DialogueEvent,
    DialogueSettings,
    IdleTimeout,
    ReplyOptions,
    ReplyStarted,
    Session,
    SessionSettings,
    UserTurnCommitted,
)
from speechgpt2.duplex.turns import Action, Begin, End, Idle, Interrupt, Pause, Resume, TurnSettings, TurnTaker
from speechgpt2.duplex.vad import STEP, Heard, VoiceActivity
from speechgpt2.errors import UserError
from speechgpt2.types import (
    SAMPLE_RATE,
    UNFINISHED,
    AudioDelta,
    Event,
    Interrupted,
    ReplyDone,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    ToolCall,
    Transcript,
    Turn,
)

KEPT = 2 * SAMPLE_RATE  # samples kept outside of turns: a turn begins before it is noticed
WAITING = 60 * SAMPLE_RATE  # samples kept of what may yet become a turn
NOTHING = np.zeros(0, np.float32)
OF_A_REPLY = (Transcript, TextDelta, AudioDelta, ToolCall, ReplyDone)


class Dialogue:
    """See `speechgpt2.duplex.protocol`. Calls may come from any thread; `events` is for one reader.

    `ear` makes what tells voices from noise, `clock` gives seconds. Errors: `UserError`.
    """

    def __init__(
        self,
        session: Session,
        settings: DialogueSettings,
        ear: Callable[[], VoiceActivity] = VoiceActivity,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.session, self.settings = session, settings
        self._lock = threading.RLock()
        self._mailbox: Mailbox[DialogueEvent] = Mailbox()
        self._make_ear, self._ear_began = ear, 0
        self._ear: VoiceActivity | None = None
        self._guard, self._playback = EchoGuard(), Playback(clock)
        self._taker: TurnTaker | None = None  # None: turns are taken by hand
        self._at = 0  # samples heard in all
        self._aside = NOTHING  # heard since the last turn, or since the pause in this one
        self._said = NOTHING  # heard in the turn that is to be taken by hand
        self._hearing = False  # the session hears a turn
        self._turn, self._began, self._started = 0, 0, False  # its number, where it began, and whether that was told
        self._reply: int | None = None  # the latest
        self._held: list[Event] | None = None  # what it tells while it may still be taken back
        self._take_turns(turn_settings(settings))

    @property
    def backlogged(self) -> bool:
        """Whether a caller had better wait before it asks for more."""
        return self.session.backlogged

    # the microphone

    def append_audio(self, pcm: np.ndarray) -> None:
        """The microphone's next samples, `pcm [N]` float32 at 24 kHz. Errors: `UserError`."""
        pcm = np.asarray(pcm, np.float32)
        if pcm.ndim != 1 or not np.isfinite(pcm).all():
            raise UserError("sound must be a row of samples, float32 at 24 kHz, all of them numbers")
        with self._lock:
            if self._taker is None:
                self._hear_by_hand(pcm)
                return
            for start in range(0, len(pcm), STEP):  # so that what is decided takes effect where it belongs
                self._hear_turns(pcm[start : start + STEP])

    def commit_audio(self) -> None:
        """What was heard since the last turn is one, whatever was detected. Errors: `UserError` if that is nothing."""
        with self._lock:
            self._take_back()
            if not self._hearing:
                if not len(self._aside):
                    raise UserError("nothing was heard since the last turn")
                self._begin(self._at - len(self._aside), len(self._aside))
            self._settle(self._at)

    def clear_audio(self) -> None:
        """Forget what was heard since the last turn."""
        with self._lock:
            self._take_back()
            if self._hearing:
                self.session.discard_turn()
            self._hearing = self._started = False
            self._aside = self._said = NOTHING
            if self._taker is not None:
                self._taker.forget()

    # the rest of the talk

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn: typed by the user, a tool's result, or history. A turn that is being spoken ends before it.

        Returns: the turn's number. Errors: `UserError`.
        """
        with self._lock:
            self._conclude()
            return self.session.add_turn(turn)

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Answer all that was said; returns the reply's number. Errors: `UserError` if a reply is under way."""
        with self._lock:
            self._conclude()
            return self._answer(options)

    def interrupt(self, heard: int | None = None) -> None:
        """Stop the reply, whose listener heard `heard` samples; None: as many as can have been played by now.

        Errors: `UserError` if there is no reply.
        """
        with self._lock:
            self._interrupt(heard)

    def truncate(self, number: int, heard: int) -> None:
        """Only the first `heard` samples of the reply `number` were heard; the model forgets the rest."""
        with self._lock:
            if number == self._reply and self._held is None and self.session.replying:
                self._interrupt(heard)
                return
            with self._anew():
                self.session.truncate(number, heard)

    def delete_turn(self, number: int) -> None:
        """The model forgets a turn or reply."""
        with self._lock, self._anew():
            self.session.delete_turn(number)

    def configure(self, settings: DialogueSettings | None = None, session: SessionSettings | None = None) -> None:
        """Go on with other settings; None: as they were. Errors: `UserError`, and nothing has changed."""
        with self._lock:
            turns = turn_settings(settings or self.settings)
            if session is not None:
                with self._anew():
                    self.session.configure(session)
            if settings is not None and settings != self.settings:
                self._take_turns(turns)
                self.settings = settings

    async def events(self) -> AsyncIterator[DialogueEvent]:
        """What happens, until the dialogue is closed; for one reader, who plays the sound as it comes."""
        async for event in self._mailbox.read(self.session.events(), self._tell):
            if isinstance(event, AudioDelta):
                with self._lock:
                    self._playback.give(len(event.pcm))
                    self._guard.play(event.pcm)
            yield event

    def close(self) -> None:
        """Give the session's slot back. Any number of times."""
        self.session.close()
        self._mailbox.close()

    # turn taking

    def _take_turns(self, settings: TurnSettings | None) -> None:
        """From now on by these rules; whatever is being said goes on only if turns were and are detected."""
        if settings is not None and self._taker is not None:
            self._taker.settings = settings
            return
        if self._hearing or self._held is not None:
            self.clear_audio()
        if settings is None:
            self._taker = None
            return
        self._ear, self._ear_began = self._make_ear(), self._at
        self._taker = TurnTaker(settings, self._at)

    def _hear_by_hand(self, pcm: np.ndarray) -> None:
        self._at += len(pcm)
        if not self._hearing and not self.session.replying:
            self._begin(self._at - len(pcm) - len(self._aside), len(self._aside))
        if self._hearing:
            self.session.append_audio(pcm)
            self._said = np.concatenate([self._said, pcm])[-WAITING:]
        else:
            self._aside = np.concatenate([self._aside, pcm])[-WAITING:]

    def _hear_turns(self, pcm: np.ndarray) -> None:
        assert self._taker is not None and self._ear is not None
        self._at += len(pcm)
        if self._hearing:
            self.session.append_audio(pcm)
        else:
            self._aside = np.concatenate([self._aside, pcm])[-(KEPT if self._held is None else WAITING) :]
        for heard in self._ear.push(pcm):
            self._judge(self._taker, heard._replace(at=heard.at + self._ear_began))

    def _judge(self, taker: TurnTaker, heard: Heard) -> None:
        """A block of the microphone, and what follows from it."""
        passes = self._guard.admits(heard.block, heard.probability) or not self.settings.echo_guard
        if self._playback.playing:
            taker.model_is("speaking")
        else:
            taker.model_is("thinking" if self.session.replying else "quiet")
        for action in taker.step(heard.at, heard.probability if passes else 0.0):
            self._do(action, heard.at, taker.settings)

    def _do(self, action: Action, now: int, settings: TurnSettings) -> None:
        if isinstance(action, Interrupt):
            self._interrupt(None)
        elif isinstance(action, Begin):
            self._mailbox.put(SpeechStarted(action.at))
            self._started = True
            self._begin(action.at, self._at - now + action.prefix)
        elif isinstance(action, Pause) and settings.answer:
            self._answer_in_advance()
        elif isinstance(action, Resume):
            self._take_back()
        elif isinstance(action, End):
            self._settle(action.at)
        elif isinstance(action, Idle):
            self._mailbox.put(IdleTimeout(action.since, self._at))
            self._answer(None)

    def _begin(self, at: int, prefix: int) -> None:
        """A turn begins at `at`; its first `prefix` samples are here already."""
        self._turn, self._began, self._hearing = self.session.start_turn(), at, True
        self._said = self._aside[len(self._aside) - min(prefix, len(self._aside)) :]
        self._aside = NOTHING
        if len(self._said):
            self.session.append_audio(self._said)
        if self._taker is not None:
            self._said = NOTHING

    def _answer_in_advance(self) -> None:
        self.session.end_turn()
        self._hearing, self._held = False, []
        self._reply = self.session.respond()

    def _take_back(self) -> None:
        """If there is an answer in advance, there never was one, and the turn goes on."""
        if self._held is None:
            return
        self.session.rollback()
        self._hearing, self._held, self._reply = True, None, None
        if len(self._aside):
            self.session.append_audio(self._aside)
        self._aside = NOTHING

    def _settle(self, end: int) -> None:
        """The turn is over at `end` and counts; so does the answer in advance."""
        if self._hearing:
            self.session.end_turn()
        if self._taker is not None:
            self._taker.forget()
        if self._started:
            self._mailbox.put(SpeechStopped(end))
        self._mailbox.put(UserTurnCommitted(self._turn, self._began, end))
        self._hearing = self._started = False
        self._aside, self._said = self._aside[-KEPT:], NOTHING
        held, self._held = self._held, None
        if held is not None and self._reply is not None:
            self._playback.begin()
            self._mailbox.put(ReplyStarted(self._reply))
            for event in held:
                self._tell(event)

    def _conclude(self) -> None:
        """Something else is said: a turn that was noticed ends before it; one to be taken by hand waits."""
        if self._taker is not None:
            if self._hearing or self._held is not None:
                self._settle(self._at)
        elif self._hearing:
            self.session.discard_turn()
            self._aside, self._said, self._hearing = self._said, NOTHING, False

    @contextmanager
    def _anew(self) -> Iterator[None]:
        """What the model remembers changes: an answer in advance is begun once more after it."""
        doubtful = self._held is not None
        self._take_back()
        yield
        if doubtful:
            self._answer_in_advance()

    # replies

    def _answer(self, options: ReplyOptions | None) -> int:
        self._reply = number = self.session.respond(options)
        self._playback.begin()
        self._mailbox.put(ReplyStarted(number))
        return number

    def _interrupt(self, heard: int | None) -> None:
        unfinished = self.session.replying
        if self._reply is None or self._held is not None or not (unfinished or self._playback.playing):
            raise UserError("there is no reply that could be interrupted")
        heard = self._playback.heard if heard is None else heard
        if unfinished:
            self.session.interrupt(heard)
        else:
            self.session.truncate(self._reply, heard)
        self._playback.stop()
        self._guard.stop()
        unread = self._mailbox.retract(ReplyStarted, OF_A_REPLY)
        self._mailbox.put(Interrupted(heard))
        if unfinished or any(isinstance(event, ReplyDone) for event in unread):
            self._mailbox.put(ReplyDone("interrupted"))

    def _tell(self, event: Event) -> None:
        """Something happened in the session."""
        with self._lock:
            if isinstance(event, Interrupted) or event == ReplyDone("interrupted"):
                return  # was told when it was done
            if self._held is not None:
                self._held.append(event)
                if isinstance(event, Transcript) and self._taker is not None:
                    self._taker.judge(not event.text.endswith(UNFINISHED))
            else:
                self._mailbox.put(event)
