"""One client's session: the OpenAI Realtime protocol on one side, a dialogue with the model on the other.

    socket ──► read ──► on(message) ──┐                  ┌──► outbox ──► write ──► socket
                                      ├──► the dialogue ─┤
                        on(event)  ◄──┘                  └──► follow ──► on(event)

Three loops run at once: `read` takes messages from the socket, `follow` takes events from the dialogue, `write` carries
what both caused back to the socket. Whatever happens, a message or an event, is one call of `on`: it changes state and
puts the protocol's events into the outbox, and never waits. So nothing here can be half done.

What a client does wrong becomes an `error` event, and the session goes on. Only limits end it: `Close`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from functools import singledispatchmethod
from typing import Any

from speechgpt2.errors import UserError
from speechgpt2.server import formats, wire
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.conversation import Conversation, Item, Part, as_turn, from_base64, from_client, new_id
from speechgpt2.server.limits import Outbox, Overflow
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.microphone import Microphone
from speechgpt2.server.partner import IdleTimeout, Partner, ReplyStarted, TurnTaken
from speechgpt2.server.response import Heard, Response, Status
from speechgpt2.server.wire import Session, WireError
from speechgpt2.types import (
    SAMPLE_RATE,
    AudioDelta,
    Error,
    Interrupted,
    Speech,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    ToolCall,
    Transcript,
    TurnDone,
)

log = logging.getLogger("sg2.realtime")
SHORTEST_TURN = 100  # milliseconds of sound that a client may commit
FAREWELL = 1.0  # seconds for the last events to leave
TICK = 0.25  # seconds between looks at the clock
LEAVING = "the server is shutting down"


class Close(Exception):
    """The session ends, with a websocket close code and a reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """One session on the wire. The caller opens and closes the dialogue."""

    def __init__(self, dialogue: Partner, session: Session, limits: LimitsConfig, metrics: Metrics):
        self.id = new_id("sess")
        self.dialogue, self.session, self.limits, self.metrics = dialogue, session, limits, metrics
        self.conversation, self.outbox = Conversation(), Outbox(limits.outbound_bytes)
        self.microphone = Microphone(session.audio.input.format.type)
        self.speaking = new_id("item")  # the id that the user's next spoken turn will have
        self.transcribed: Item | None = None  # the user's latest spoken turn
        self.response: Response | None = None
        self.wanted: dict[int, tuple[Session, dict[str, str] | None]] = {}  # replies that the client asked for
        self.heard = Heard()  # by the model, since its last reply
        self.notes: tuple[str, ...] = ()  # system messages
        self.spoke_up = self.speech_ended = self.turn_ended = 0.0
        self.began = self.active = time.monotonic()
        self.draining = False
        self.verdict: Close | None = None  # how the session will end
        self._event_id: str | None = None  # of the message that is being answered

    # the loops

    async def run(self, receive: Callable[[], Awaitable[str | bytes]], send: Callable[[str], Awaitable[None]]) -> None:
        """Talk until the client leaves. Errors: `Close` where the server ends it, and what `receive` raises."""
        self.emit("session.created", session=self.shown())
        writing = asyncio.ensure_future(self.write(send))
        loops = [writing, *map(asyncio.ensure_future, (self.read(receive), self.follow(), self.keep_time()))]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            if self.verdict is not None:
                await asyncio.wait([writing], timeout=FAREWELL)
                raise self.verdict
            for loop in done:
                loop.result()
        except Overflow:
            raise Close(1008, "too slow: what the server says is not read") from None
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def read(self, receive: Callable[[], Awaitable[str | bytes]]) -> None:
        """Messages from the client, one after the other."""
        while True:
            self.take(await receive())
            self.active = time.monotonic()

    async def follow(self) -> None:
        """Events from the dialogue, one after the other."""
        async for event in self.dialogue.events():
            self._event_id = None
            self.on(event)

    async def write(self, send: Callable[[str], Awaitable[None]]) -> None:
        """What is in the outbox, on to the socket."""
        while (message := await self.outbox.get()) is not None:
            await send(message)

    async def keep_time(self) -> None:
        """End a session that lasts too long, or whose client has fallen silent."""
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            if now > self.began + self.limits.session_seconds:
                self.expire(f"A session lasts {self.limits.session_seconds:.0f} s at most.")
            elif now > self.active + self.limits.idle_seconds:
                self.expire(f"There was no message for {self.limits.idle_seconds:.0f} s.")

    def take(self, text: str | bytes) -> None:
        """One message; whatever is wrong with it is answered with an `error` event."""
        self._event_id = None
        try:
            raw = wire.read(text)
            self._event_id = raw["event_id"] if isinstance(raw.get("event_id"), str) else None
            self.on(wire.parse(raw))
        except WireError as error:
            self.complain(str(error), error.code, error.param)
        except UserError as error:
            self.complain(str(error), "invalid_value")
        except Overflow:
            raise
        except Exception:  # a bug of ours should not cost the client its session
            log.exception("a message failed", extra={"fields": {"session": self.id}})
            self.complain("The server failed to do this.", "server_error", kind="server_error")

    # what is sent

    def emit(self, type: str, **fields: Any) -> None:
        """Put one of the protocol's events into the outbox."""
        self.outbox.put(json.dumps({"type": type, "event_id": new_id("event"), **fields}, ensure_ascii=False))

    def complain(self, message: str, code: str, param: str | None = None, kind: str = "invalid_request_error") -> None:
        """Tell the client what is wrong, and with which of its messages."""
        self.metrics.errors.labels(code).inc()
        error = {"type": kind, "code": code, "message": message, "param": param, "event_id": self._event_id}
        self.emit("error", error=error)

    def shown(self) -> dict[str, Any]:
        """The session's settings, as the wire shows them."""
        ends = int(time.time() + self.began + self.limits.session_seconds - time.monotonic())
        return {"id": self.id, "object": "realtime.session", "expires_at": ends, **self.session.model_dump()}

    def summary(self) -> dict[str, Any]:
        """For the log: no words, no sound."""
        seconds = round(time.monotonic() - self.began, 3)
        heard = round(self.microphone.heard / SAMPLE_RATE, 3)
        return {"session": self.id, "seconds": seconds, "heard_seconds": heard, "items": len(self.conversation)}

    def expire(self, why: str) -> None:
        """End the session by one of its limits."""
        self._event_id = None
        self.complain(why, "session_expired")
        self.finish(Close(1008, why))

    def drain(self) -> None:
        """Let the answer in progress end, then end the session; without one, now."""
        self.draining = True
        if self.response is None:
            self.finish(Close(1001, LEAVING))

    def finish(self, close: Close) -> None:
        """Send what is in the outbox, then end the session."""
        self.verdict = self.verdict or close
        self.outbox.close()

    # what the client says

    @singledispatchmethod
    def on(self, what: Any) -> None:
        """A message of the client's, or an event of the dialogue's."""
        raise TypeError(f"nothing is done about {type(what).__name__}")

    @on.register
    def _(self, message: wire.SessionUpdate) -> None:
        before, session = self.session.audio.input.format, self.session.updated(message.session)
        self.dialogue.configure(session, self.notes)
        self.session = session
        if session.audio.input.format != before:
            self.microphone.become(session.audio.input.format.type)
        self.emit("session.updated", session=self.shown())

    @on.register
    def _(self, message: wire.Append) -> None:
        self.dialogue.hear(self.microphone.push(from_base64(message.audio, "audio"), time.monotonic()))

    @on.register
    def _(self, message: wire.Commit) -> None:
        if self.microphone.waiting_ms < SHORTEST_TURN:
            raise WireError(
                f"Error committing input audio buffer: it holds {self.microphone.waiting_ms} ms of sound, "
                f"and at least {SHORTEST_TURN} ms are needed.",
                "input_audio_buffer_commit_empty",
            )
        try:
            self.dialogue.commit()
        except UserError as error:
            raise WireError(str(error), "input_audio_buffer_commit_empty") from None
        self.microphone.taken = self.microphone.heard

    @on.register
    def _(self, message: wire.Clear) -> None:
        self.dialogue.clear()
        self.microphone.take(0, self.microphone.heard)
        self.emit("input_audio_buffer.cleared")

    @on.register
    def _(self, message: wire.ItemCreate) -> None:
        item = from_client(message.item, self.session.audio.input.format.type)
        before = self.conversation.add(item, message.previous_item_id)
        try:
            self._tell(item)
        except UserError:
            self.conversation.delete(item.id)
            raise
        for event in ("added", "done"):
            self.emit(f"conversation.item.{event}", previous_item_id=before, item=item.shown())

    @on.register
    def _(self, message: wire.ItemRetrieve) -> None:
        item = self.conversation.get(message.item_id, "item_retrieve_invalid_item_id")
        self.emit("conversation.item.retrieved", item=item.shown(with_sound=True))

    @on.register
    def _(self, message: wire.ItemDelete) -> None:
        item = self.conversation.delete(message.item_id)
        if item.number is not None:
            self.dialogue.forget(item.number)
        self.emit("conversation.item.deleted", item_id=item.id)

    @on.register
    def _(self, message: wire.ItemTruncate) -> None:
        item = self.conversation.get(message.item_id, "item_truncate_invalid_item_id")
        if item.role != "assistant" or not item.parts or not item.parts[0].spoken:
            raise WireError("Only what the assistant has spoken can be truncated.", "invalid_value", "item_id")
        milliseconds = self.conversation.cut(item, message.audio_end_ms)
        if self.response is not None and item in self.response.items:
            self.response.heard = formats.samples(milliseconds)  # it may still grow; cut when it ends
        elif item.number is not None:
            self.dialogue.truncate(item.number, formats.samples(milliseconds))
        place = {"item_id": item.id, "content_index": message.content_index}
        self.emit("conversation.item.truncated", **place, audio_end_ms=milliseconds)

    @on.register
    def _(self, message: wire.ResponseCreate) -> None:
        busy = "Conversation already has an active response in progress"
        if self.response is not None or self.wanted:
            raise WireError(f"{busy}.", "conversation_already_has_active_response")
        wish = message.response or wire.ResponseSettings()
        if wish.conversation == "none" or wish.input is not None:
            param = "response.conversation" if wish.conversation == "none" else "response.input"
            raise WireError("An answer outside of the conversation is not supported.", "unsupported_value", param)
        own = wish.model_dump(exclude_none=True, exclude={"metadata", "conversation", "input"})
        session = self.session.updated(own, "response")
        try:
            number = self.dialogue.respond(session)
        except UserError as error:
            raise WireError(f"{busy} ({error}).", "conversation_already_has_active_response") from None
        self.wanted[number] = (session, wish.metadata)

    @on.register
    def _(self, message: wire.ResponseCancel) -> None:
        response = self.response
        if response is None or message.response_id not in (None, response.id) or response.ending is not None:
            raise WireError("Cancellation failed: no active response found", "response_cancel_not_active")
        response.ending = "client_cancelled"
        self.dialogue.interrupt()

    @on.register
    def _(self, message: wire.OutputClear) -> None:
        raise WireError("There is no output buffer on a websocket: truncate the item.", "invalid_value", "type")

    # what the dialogue tells

    @on.register
    def _(self, event: SpeechStarted) -> None:
        self.spoke_up = self.microphone.moment(event.at)
        start = formats.milliseconds(event.at)
        self.emit("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self.speaking)

    @on.register
    def _(self, event: SpeechStopped) -> None:
        self.speech_ended, self.turn_ended = self.microphone.moment(event.at), time.monotonic()
        end = formats.milliseconds(event.at)
        self.emit("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=self.speaking)

    @on.register
    def _(self, event: TurnTaken) -> None:
        self._commit(event.start, event.end).number = event.number

    @on.register
    def _(self, event: IdleTimeout) -> None:
        times = {"audio_start_ms": formats.milliseconds(event.start), "audio_end_ms": formats.milliseconds(event.end)}
        self.emit("input_audio_buffer.timeout_triggered", **times, item_id=self.speaking)
        self._commit(event.start, event.end)

    @on.register
    def _(self, event: ReplyStarted) -> None:
        session, metadata = self.wanted.pop(event.number, (self.session, None))
        self.response = Response(self.emit, session, self.conversation, event.number, self.heard, metadata)
        self.heard = Heard()
        self.response.begin()

    @on.register
    def _(self, event: Transcript) -> None:
        item = self.transcribed
        if item is None:
            return
        item.parts[0].text = event.text
        if self.session.audio.input.transcription is not None:
            kind, place = "conversation.item.input_audio_transcription", {"item_id": item.id, "content_index": 0}
            seconds = item.parts[0].size / formats.BYTES_PER_SECOND[item.parts[0].format]
            self.emit(f"{kind}.delta", **place, delta=event.text)
            usage = {"type": "duration", "seconds": seconds}
            self.emit(f"{kind}.completed", **place, transcript=event.text, usage=usage)

    @on.register
    def _(self, event: TextDelta) -> None:
        if self.response is not None:
            self.response.write(event.text)

    @on.register
    def _(self, event: AudioDelta) -> None:
        if self.response is None:
            return
        now = time.monotonic()
        if self.response.began is None and self.speech_ended:
            self.metrics.first_audio.observe(max(0.0, now - self.speech_ended))
            self.metrics.endpoint.observe(max(0.0, now - self.turn_ended))
            self.speech_ended = 0.0
        if self.response.ran_dry(now):
            self.metrics.underruns.inc()
        self.response.speak(event.pcm, now)

    @on.register
    def _(self, event: ToolCall) -> None:
        if self.response is not None:
            self.response.call(event.name, event.arguments)

    @on.register
    def _(self, event: Interrupted) -> None:
        if self.response is not None and self.response.ending is None:
            self.response.ending = "turn_detected"
            self.metrics.barge_in.observe(max(0.0, time.monotonic() - self.spoke_up))

    @on.register
    def _(self, event: TurnDone) -> None:
        if event.reason == "interrupted":
            self._end("cancelled", self.response.ending if self.response is not None else None)
        elif event.reason == "length":
            self._end("incomplete", "max_output_tokens")
        else:
            self._end("completed")

    @on.register
    def _(self, event: Error) -> None:
        if self.response is not None:
            error = {"type": "server_error", "code": "server_error", "message": event.message}
            self._end("failed", error=error)
        else:
            self.complain(event.message, "server_error", kind="server_error")

    # what follows from it

    def _tell(self, item: Item) -> None:
        """Make an item of the client's known to the model. Errors: `UserError`."""
        if item.role == "system":
            self.dialogue.configure(self.session, (*self.notes, item.written))
            self.notes += (item.written,)
        elif (turn := as_turn(item)) is not None:
            item.number = self.dialogue.remember(turn)
            segment = turn.segments[0]
            if isinstance(segment, Speech) and segment.pcm is not None:
                self.heard.samples += len(segment.pcm)
            self.heard.pieces += len(item.written.split())

    def _commit(self, start: int, end: int) -> Item:
        """What the microphone sent from sample `start` to `end` becomes an item of the user's."""
        item = Item(self.speaking, parts=[Part("input_audio", format=self.microphone.format)])
        self.speaking, self.transcribed = new_id("item"), item
        before = self.conversation.add(item)
        self.conversation.hear(item.parts[0], self.microphone.take(start, end))
        self.heard.samples += end - start
        self.emit("input_audio_buffer.committed", previous_item_id=before, item_id=item.id)
        for event in ("added", "done"):
            self.emit(f"conversation.item.{event}", previous_item_id=before, item=item.shown())
        return item

    def _end(self, status: Status, reason: str | None = None, error: dict[str, Any] | None = None) -> None:
        """The answer is over."""
        response, self.response = self.response, None
        if response is not None:
            response.end(status, reason, error)
            self.metrics.responses.labels(status).inc()
            if response.heard is not None:
                self.dialogue.truncate(response.number, response.heard)
        if self.draining:
            self.finish(Close(1001, LEAVING))
