"""A dialogue with one user: the audio of a microphone in, turns and replies out. It decides who speaks.

                               ┌► voice activity ─► EchoGuard ─► Endpointer ──┐ TurnStarted … BargeIn, UserIdle
    append_audio(pcm) ─────────┤                                              ▼
                               └─► UserTurn ─► engine session ──► events, held while a reply is speculative

A speculative reply starts at each pause (`TurnPaused`); `user_turn` says what becomes of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from speechgpt2.audio import check_audio
from speechgpt2.duplex import protocol
from speechgpt2.duplex.echo import EchoGuard
from speechgpt2.duplex.endpointing import (
    BargeIn,
    Endpointer,
    EndpointerSettings,
    EndpointEvent,
    TurnEnded,
    TurnPaused,
    TurnResumed,
    TurnStarted,
    UserIdle,
)
from speechgpt2.duplex.event_queue import EventQueue
from speechgpt2.duplex.playback import PlaybackClock
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
from speechgpt2.duplex.settings import endpointer_settings
from speechgpt2.duplex.user_turn import UserTurn
from speechgpt2.duplex.voice_activity import BLOCK_SAMPLES, VoiceActivityDetector
from speechgpt2.errors import UserError
from speechgpt2.types import (
    REPLY_EVENTS,
    UNFINISHED,
    AudioDelta,
    Event,
    Interrupted,
    ReplyDone,
    SpeechStarted,
    SpeechStopped,
    Transcript,
    Turn,
)


class Dialogue(protocol.Dialogue):
    """A dialogue with one user. The protocol describes its methods.

    Calls may come from any thread; `events` is for one reader.

    Args:
        session: The engine's session.
        settings: The settings of turn taking.
        make_vad: Returns a new voice activity detector.
        clock: Returns the time in seconds.

    Raises:
        UserError: The settings are out of range.
    """

    def __init__(
        self,
        session: Session,
        settings: DialogueSettings,
        make_vad: Callable[[], VoiceActivityDetector] = VoiceActivityDetector,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.session, self.settings = session, settings
        self._lock = threading.RLock()
        self._queue: EventQueue[DialogueEvent] = EventQueue()
        self._echo_guard, self._playback = EchoGuard(), PlaybackClock(clock)
        self._turn = UserTurn(session, detects_turns=False)
        self._latest_reply: int | None = None  # without speculative ones
        self._make_vad, self._vad_start = make_vad, 0
        self._vad: VoiceActivityDetector | None = None
        self._endpointer: Endpointer | None = None  # None: the client commits turns
        self._set_turn_detection(endpointer_settings(settings))

    @property
    def backlogged(self) -> bool:
        return self.session.backlogged

    # the microphone

    def append_audio(self, pcm: np.ndarray) -> None:
        pcm = check_audio(pcm)
        with self._lock:
            if self._endpointer is None:
                self._turn.append(pcm)
                return
            # One block at a time: a decision takes effect before the next block is appended.
            for start in range(0, len(pcm), BLOCK_SAMPLES):
                self._append_block(pcm[start : start + BLOCK_SAMPLES])

    def commit_audio(self) -> None:
        with self._lock:
            self._turn.rollback()  # a pause ends, so that the audio since then counts
            if not self._turn.active:
                self._turn.begin_with_buffered_audio()
            self._commit_turn(self._turn.position)

    def clear_audio(self) -> None:
        with self._lock:
            self._turn.clear()
            if self._endpointer is not None:
                self._endpointer.reset()

    # turns and replies

    def add_turn(self, turn: Turn) -> int:
        with self._lock:
            self._conclude_turn()
            number = self.session.add_turn(turn)
            self._save()
            return number

    def respond(self, options: ReplyOptions | None = None) -> int:
        with self._lock:
            self._conclude_turn()
            return self._start_reply(self.session.respond(options))

    def interrupt(self, played: int | None = None) -> None:
        with self._lock:
            self._interrupt(played)

    def truncate(self, number: int, played: int) -> None:
        with self._lock:
            if number == self._latest_reply and not self._turn.speculating and self.session.replying:
                self._interrupt(played)
                return
            with self._turn.respeculate():
                self.session.truncate(number, played)
            self._save()

    def delete_turn(self, number: int) -> None:
        with self._lock:
            with self._turn.respeculate():
                self.session.delete_turn(number)
            self._save()

    def configure(self, settings: DialogueSettings | None = None, session: SessionSettings | None = None) -> None:
        with self._lock:
            detection = endpointer_settings(settings or self.settings)
            if session is not None:
                with self._turn.respeculate():
                    self.session.configure(session)
                self._save()
            if settings is not None and settings != self.settings:
                self._set_turn_detection(detection)
                self.settings = settings

    async def events(self) -> AsyncIterator[DialogueEvent]:
        async for event in self._queue.read(self.session.events(), self._deliver):
            if isinstance(event, AudioDelta):
                with self._lock:
                    self._playback.add(len(event.pcm))
                    self._echo_guard.play(event.pcm)
            yield event

    def close(self) -> None:
        self.session.close()
        self._queue.close()

    # turn detection

    def _set_turn_detection(self, settings: EndpointerSettings | None) -> None:
        """Change turn detection. An active turn continues only if turns are detected before and after."""
        if settings is not None and self._endpointer is not None:
            self._endpointer.settings = settings
            return
        if self._turn.active or self._turn.speculating:
            self.clear_audio()
        self._turn.detects_turns = settings is not None
        if settings is None:
            self._endpointer = None
            return
        self._vad, self._vad_start = self._make_vad(), self._turn.position
        self._endpointer = Endpointer(settings, self._turn.position)

    def _append_block(self, pcm: np.ndarray) -> None:
        """Add audio of the microphone: is it the user's, and what follows from it?"""
        endpointer, vad = self._endpointer, self._vad
        assert endpointer is not None and vad is not None
        self._turn.append(pcm)
        for frame in vad.push(pcm):
            if self._playback.playing:
                endpointer.set_model_state("speaking")
            else:
                endpointer.set_model_state("thinking" if self.session.replying else "quiet")
            is_user = self._echo_guard.may_be_user(frame.block, frame.probability) or not self.settings.echo_guard
            at = self._vad_start + frame.at
            for event in endpointer.step(at, frame.probability if is_user else 0.0):
                self._act(event, at, endpointer.settings)

    def _act(self, event: EndpointEvent, now: int, settings: EndpointerSettings) -> None:
        match event:
            case BargeIn():
                self._interrupt(None)
            case TurnStarted(at, lookback):
                self._queue.put(SpeechStarted(at))
                self._turn.announced = True
                # The detector lags behind the microphone.
                self._turn.begin(at, self._turn.position - now + lookback)
            case TurnPaused() if settings.create_response:
                self._turn.speculate()
            case TurnResumed():
                self._turn.rollback()
            case TurnEnded(at):
                self._commit_turn(at)
            case UserIdle(since):
                self._queue.put(IdleTimeout(since, self._turn.position))
                self._start_reply(self.session.respond())

    def _commit_turn(self, end: int) -> None:
        """Commit the turn, which ended at sample `end`, and its speculative reply."""
        announced = self._turn.announced
        reply = self._turn.commit()
        if self._endpointer is not None:
            self._endpointer.reset()
        if announced:
            self._queue.put(SpeechStopped(end))
        self._queue.put(UserTurnCommitted(self._turn.number, self._turn.start, end))
        if reply is not None:
            number, events = reply
            self._start_reply(number)
            for event in events:
                self._deliver(event)
        self._save()

    def _save(self) -> None:
        """Write what is new to the saved session. While a reply is speculative, that waits for the turn's end."""
        if not self._turn.speculating:
            self.session.save()

    def _conclude_turn(self) -> None:
        """Before another turn is added: commit a detected turn; postpone one that the client has to commit."""
        if self._endpointer is None:
            self._turn.postpone()
        elif self._turn.active or self._turn.speculating:
            self._commit_turn(self._turn.position)

    # replies

    def _start_reply(self, number: int) -> int:
        self._latest_reply = number
        self._playback.start_reply()
        self._queue.put(ReplyStarted(number))
        return number

    def _interrupt(self, played: int | None) -> None:
        unfinished = self.session.replying
        if self._latest_reply is None or self._turn.speculating or not (unfinished or self._playback.playing):
            raise UserError("no reply can be interrupted")
        played = self._playback.played if played is None else played
        if unfinished:
            self.session.interrupt(played)
        else:
            self.session.truncate(self._latest_reply, played)
        self._playback.stop()
        self._echo_guard.stop()
        unread = self._queue.retract(ReplyStarted, REPLY_EVENTS)
        self._queue.put(Interrupted(played))
        if unfinished or any(isinstance(event, ReplyDone) for event in unread):
            self._queue.put(ReplyDone("interrupted"))
        self._save()

    def _deliver(self, event: Event) -> None:
        """Queue an event of the session, or hold it back."""
        with self._lock:
            if isinstance(event, Interrupted) or event == ReplyDone("interrupted"):
                return  # `_interrupt` has queued them already
            if self._turn.held_events is None:
                self._queue.put(event)
                if isinstance(event, ReplyDone):
                    self._save()
                return
            self._turn.held_events.append(event)
            if isinstance(event, Transcript) and self._endpointer is not None:
                self._endpointer.set_complete(not event.text.endswith(UNFINISHED))
