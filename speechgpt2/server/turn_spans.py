"""The spans of a session's turns, from the calls and events of its dialogue. Imports the extra `telemetry`.

    turn                        from the user's first word, or the typed text, to the last sound of the answer
    ├── user_speech             from the first word to the last
    ├── endpointing             from the last word to the decision that the turn is over
    ├── reply                   from that decision to the last piece that the model makes
    │   ├── recognition         to the transcript of the user's speech, its last prefill included
    │   ├── first_text          from there to the first text
    │   └── first_audio         from there to the first sound
    ├── playout                 from the first sound to the last that the client can have played
    └── execute_tool NAME       from the call to its result

A turn may have several replies: one calls a tool, and another one answers. Spans hold times and counts, and never what
was said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
from opentelemetry import context, trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from speechgpt2.duplex.playback import PlaybackClock
from speechgpt2.duplex.protocol import (
    Dialogue,
    DialogueEvent,
    ReplyOptions,
    ReplyStarted,
    Session,
    UserTurnCommitted,
)
from speechgpt2.types import (
    SAMPLE_RATE,
    AudioDelta,
    Error,
    Interrupted,
    ReplyDone,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    ToolCall,
    Transcript,
    Turn,
)


class Spans:
    """Makes spans with times in seconds.

    Args:
        tracer: OpenTelemetry's.
    """

    def __init__(self, tracer: Tracer):
        self._tracer = tracer

    def start(self, name: str, at: float, parent: context.Context | Span, **attributes: Any) -> Span:
        """Start a span at the time `at`."""
        if isinstance(parent, Span):
            parent = trace.set_span_in_context(parent, context.Context())
        return self._tracer.start_span(name, parent, attributes=attributes, start_time=nanoseconds(at))

    def add(self, name: str, start: float, end: float, parent: Span, **attributes: Any) -> None:
        """Add a span that has ended."""
        self.start(name, start, parent, **attributes).end(nanoseconds(max(start, end)))


def nanoseconds(seconds: float) -> int:
    """Convert seconds since 1970 to OpenTelemetry's unit."""
    return round(seconds * 1e9)


class ReplySpans:
    """The spans of one reply, each from the end of the one before.

    Args:
        spans: Makes the spans.
        turn: The span of the turn.
        number: The reply's number.
        at: When it started.

    Attributes:
        first_audio_at: When its first sound came.
        calls: Whether it calls a tool, so that another reply follows.
    """

    def __init__(self, spans: Spans, turn: Span, number: int, at: float):
        self._spans, self._turn = spans, turn
        self._span = spans.start("reply", at, turn, **{"sg2.reply.number": number})
        self._last = at  # end of the latest part
        self._seen: set[str] = set()
        self.first_audio_at: float | None = None
        self.calls = False

    def reached(self, name: str, at: float) -> None:
        """The part `name` of the reply ends now. Only its first end counts."""
        if name not in self._seen:
            self._seen.add(name)
            self._spans.add(name, self._last, at, self._span)
            self._last = at
            if name == "first_audio":
                self.first_audio_at = at

    def end(self, at: float, reason: str, error: str | None = None) -> None:
        """The model makes nothing more."""
        self._span.set_attribute("sg2.reply.reason", reason)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(nanoseconds(at))

    def add_playout(self, until: float, samples: int, interrupted: bool) -> None:
        """Add the time in which the client played `samples` of the reply."""
        if self.first_audio_at is not None:
            seconds = round(samples / SAMPLE_RATE, 3)
            attributes = {"sg2.played_seconds": seconds, "sg2.interrupted": interrupted}
            self._spans.add("playout", self.first_audio_at, until, self._turn, **attributes)


class TurnSpans:
    """The spans of one session, one turn after the other. See `tracing.SessionTrace`.

    Args:
        tracer: OpenTelemetry's.
        attributes: Attributes of every turn.
        plays: Whether the client plays audio as it comes; a file of speech is not played.
        clock: Returns the seconds since 1970.
    """

    def __init__(
        self,
        tracer: Tracer,
        attributes: Mapping[str, Any],
        plays: bool = True,
        clock: Callable[[], float] = time.time,
    ):
        self._spans, self._plays, self._clock = Spans(tracer), plays, clock
        self._attributes, self._parent = dict(attributes), context.get_current()
        self._playback = PlaybackClock(clock)
        self._received, self._received_at = 0, clock()  # samples of the microphone, and when the latest came
        self._turn: Span | None = None
        self._turn_at = self._speech_ended_at = 0.0
        self._latest_at = 0.0  # of the latest event of the turn
        self._typed_at: float | None = None  # a turn that is not asked to be answered yet
        self._reply: ReplySpans | None = None
        self._played: ReplySpans | None = None  # a complete reply, which the client still plays
        self._calls: list[tuple[ToolCall, Span]] = []
        self._timer: asyncio.TimerHandle | None = None

    def name_session(self, id: str) -> None:
        """See `tracing.SessionTrace`."""
        self._attributes["session.id"] = id
        trace.get_current_span().set_attribute("session.id", id)

    def tool_finished(self, call: ToolCall) -> None:
        """See `tracing.SessionTrace`."""
        for entry in [entry for entry in self._calls if entry[0] is call]:
            self._calls.remove(entry)
            self._latest_at = self._clock()
            entry[1].end(nanoseconds(self._latest_at))

    # calls

    def audio_received(self, samples: int) -> None:
        """The microphone's next samples have come."""
        self._received += samples
        self._received_at = self._clock()

    def turn_added(self, turn: Turn) -> None:
        """A whole turn was added: typed, or the results of tools."""
        if turn.role == "tool":
            for call, _ in list(self._calls):
                self.tool_finished(call)
        elif turn.role == "user":
            self._typed_at = self._clock()

    def close(self) -> None:
        """End everything."""
        self._end_turn("closed")

    # events

    def observe(self, event: DialogueEvent) -> None:
        """Take the dialogue's next event."""
        self._latest_at = now = self._clock()
        match event:
            case SpeechStarted(at):
                self._start_turn(self._time_of(at))
            case SpeechStopped(at):
                self._user_stopped(self._time_of(at))
            case UserTurnCommitted():
                self._committed(event, now)
            case ReplyStarted(number):
                self.reply_started(number)
            case Transcript():
                self._reached("recognition", now)
            case TextDelta():
                self._reached("first_text", now)
            case AudioDelta(pcm):
                self._reached("first_audio", now)
                self._playback.add(len(pcm))
            case ToolCall(name):
                self._called(event, name, now)
            case Interrupted(played):
                self._end_playout(now, played, interrupted=True)
            case ReplyDone(reason):
                self._reply_done(reason, now)
            case Error(message):
                self._reply_done("error", now, message)

    def reply_started(self, number: int) -> None:
        """The reply `number` has started."""
        now = self._clock()
        if self._turn is None or self._typed_at is not None:
            self._start_turn(self._typed_at or now)
        assert self._turn is not None
        self._end_playout(now)
        self._stop_timer()
        self._typed_at = None
        self._playback.start_reply()
        self._reply = ReplySpans(self._spans, self._turn, number, now)

    def _time_of(self, sample: int) -> float:
        """When a sample of the microphone was spoken."""
        return self._received_at - (self._received - sample) / SAMPLE_RATE

    def _start_turn(self, at: float) -> None:
        self._end_turn("next turn")
        self._turn = self._spans.start("turn", at, self._parent, **self._attributes)
        self._turn_at, self._speech_ended_at, self._latest_at = at, 0.0, max(at, self._latest_at)

    def _user_stopped(self, at: float) -> None:
        if self._turn is not None:
            self._spans.add("user_speech", self._turn_at, at, self._turn)
            self._speech_ended_at = at

    def _committed(self, event: UserTurnCommitted, now: float) -> None:
        if not self._speech_ended_at or self._turn is None:  # the client has committed it
            self._start_turn(self._time_of(event.start))
            self._user_stopped(self._time_of(event.end))
        assert self._turn is not None
        self._spans.add("endpointing", self._speech_ended_at, now, self._turn)
        self._turn.set_attribute("sg2.turn.number", event.number)
        self._typed_at = None

    def _reached(self, name: str, now: float) -> None:
        if self._reply is None:
            return
        if name == "first_audio" and self._reply.first_audio_at is None and self._turn is not None:
            since = self._speech_ended_at or self._turn_at
            self._turn.set_attribute("sg2.time_to_first_audio", round(max(0.0, now - since), 3))
        self._reply.reached(name, now)

    def _called(self, call: ToolCall, name: str, now: float) -> None:
        if self._turn is not None and self._reply is not None:
            self._reply.calls = True
            attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
            self._calls.append((call, self._spans.start(f"execute_tool {name}", now, self._turn, **attributes)))

    def _reply_done(self, reason: str, now: float, error: str | None = None) -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        reply.end(now, reason, error)
        if self._plays and reason != "interrupted":
            self._played = reply
        if not reply.calls:
            self._end_later()

    # ends

    def _end_playout(self, now: float, played: int | None = None, interrupted: bool = False) -> None:
        """The client plays nothing of the latest reply any more."""
        reply, self._played = self._reply or self._played, None
        if reply is not None and self._plays:
            until = min(now, self._playback.ends)
            reply.add_playout(until, self._playback.played if played is None else played, interrupted)
            self._playback.start_reply()

    def _end_later(self) -> None:
        """End the turn when the client has played the answer, unless a call has no result yet."""
        self._stop_timer()
        if not self._calls:
            seconds = max(0.0, self._playback.ends - self._clock()) if self._plays else 0.0
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end_turn, "played")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_turn(self, reason: str) -> None:
        self._stop_timer()
        if self._turn is None:
            return
        now = self._clock()
        if self._reply is None and not self._calls:  # it has ended before
            now = max(self._latest_at, min(now, self._playback.ends))
        if self._reply is not None:
            self._reply.end(now, reason)
        self._end_playout(now)
        for _, span in self._calls:
            span.end(nanoseconds(now))
        self._calls, self._reply = [], None
        self._turn.end(nanoseconds(now))
        self._turn = None


class TracedDialogue:
    """A dialogue whose turns are traced; everything else is the dialogue's own."""

    def __init__(self, dialogue: Dialogue, spans: TurnSpans):
        self._dialogue, self._trace = dialogue, spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dialogue, name)

    def append_audio(self, pcm: np.ndarray) -> None:
        """Add the microphone's next samples. See `Dialogue`."""
        self._trace.audio_received(len(pcm))
        self._dialogue.append_audio(pcm)

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn. See `Dialogue`."""
        number = self._dialogue.add_turn(turn)
        self._trace.turn_added(turn)
        return number

    async def events(self) -> AsyncIterator[DialogueEvent]:
        """Yield the dialogue's events. See `Dialogue`."""
        async for event in self._dialogue.events():
            self._trace.observe(event)
            yield event

    def close(self) -> None:
        """Free the session's slot. See `Dialogue`."""
        self._dialogue.close()
        self._trace.close()


class TracedSession:
    """A session of an engine whose replies are traced; everything else is the session's own."""

    def __init__(self, session: Session, spans: TurnSpans):
        self._session, self._trace = session, spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def add_turn(self, turn: Turn) -> int:
        """Add a whole turn. See `Session`."""
        number = self._session.add_turn(turn)
        self._trace.turn_added(turn)
        return number

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Generate a reply. See `Session`."""
        number = self._session.respond(options)
        self._trace.reply_started(number)
        return number

    async def events(self) -> AsyncIterator[DialogueEvent]:
        """Yield the session's events. See `Session`."""
        async for event in self._session.events():
            self._trace.observe(event)
            yield event

    def close(self) -> None:
        """Free the slot. See `Session`."""
        self._session.close()
        self._trace.close()
