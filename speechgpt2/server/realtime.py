"""One client's session: the OpenAI Realtime protocol on one side, a dialogue with the model on the other.

Whatever happens, a message of the client's or an event of the dialogue's, is one call of `on`: it changes state, asks
something of the dialogue, and puts the protocol's events into the outbox. It never waits; so nothing is ever half done.
The loops that call it are in channel.py.

    client                                        here                          dialogue
    input_audio_buffer.append ─────────────────►  microphone  ───────────────►  append_audio
                     ◄── speech_started, speech_stopped, committed ───────────  SpeechStarted … UserTurnCommitted
    response.create  ──────────────────────────────────────────────────────►  respond
                     ◄── response.created … deltas … response.done ───────────  ReplyStarted … TextDelta … ReplyDone
    response.cancel, conversation.item.truncate ───────────────────────────►  interrupt, truncate
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from typing import Any

from speechgpt2.duplex.protocol import Engine, IdleTimeout, ReplyStarted, UserTurnCommitted
from speechgpt2.errors import UserError
from speechgpt2.server import formats, settings, wire
from speechgpt2.server.channel import Channel, Close, log
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.conversation import Conversation, Item, Part, as_turn, from_base64, from_client, new_id
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.microphone import Microphone
from speechgpt2.server.response import Heard, Response, Status
from speechgpt2.server.wire import Session, WireError
from speechgpt2.types import (
    SAMPLE_RATE,
    AudioDelta,
    Error,
    Interrupted,
    ReplyDone,
    Speech,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    ToolCall,
    Transcript,
    Turn,
)

SHORTEST_TURN = 100  # milliseconds of sound that a client may commit
LEAVING = "the server is shutting down"


@dataclass(frozen=True)
class Addition:
    """A client's item, `turn` being what the model is told of it; its speech is encoded."""

    item: Item
    turn: Turn | None
    after: str | None


class Connection(Channel):
    """One session on the wire. The caller opens and closes the dialogue."""

    def __init__(self, dialogue: Any, engine: Engine, session: Session, limits: LimitsConfig, metrics: Metrics):
        super().__init__(dialogue, limits, metrics)
        self.engine, self.session, self.conversation = engine, session, Conversation()
        self.microphone = Microphone(session.audio.input.format.type)
        self.speaking = new_id("item")  # the id that the user's next spoken turn will have
        self.transcribed: Item | None = None  # the user's latest spoken turn
        self.response: Response | None = None
        self.wanted: dict[int, tuple[Session, dict[str, str] | None]] = {}  # replies that the client asked for
        self.heard = Heard()  # by the model, since its last reply
        self.notes: tuple[str, ...] = ()  # system messages
        self.greeting: Speech | None = None
        self.spoke_up = self.speech_ended = self.turn_ended = 0.0
        self.draining, self.log_words = False, False
        self.emit("session.created", session=self.shown())

    def shown(self) -> dict[str, Any]:
        """The session's settings, as the wire shows them."""
        ends = int(time.time() + self.began + self.limits.session_seconds - time.monotonic())
        return {"id": self.id, "object": "realtime.session", "expires_at": ends, **self.session.model_dump()}

    def summary(self) -> dict[str, Any]:
        """For the log: no words, no sound."""
        seconds = round(time.monotonic() - self.began, 3)
        heard = round(self.microphone.heard / SAMPLE_RATE, 3)
        return {"session": self.id, "seconds": seconds, "heard_seconds": heard, "items": len(self.conversation)}

    def drain(self) -> None:
        """Let the answer in progress end, then end the session; without one, now."""
        self.draining = True
        self.leave_if_done()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self.response is not None or bool(self.wanted)

    def leave_if_done(self) -> None:
        """End the session if it is to end as soon as no answer is under way."""
        if self.draining and not self.busy:
            self.finish(Close(1001, LEAVING))

    # what the client says

    @singledispatchmethod
    def on(self, what: Any) -> None:
        """A message of the client's, or an event of the dialogue's."""
        raise TypeError(f"nothing is done about {type(what).__name__}")

    @on.register
    def _(self, message: wire.SessionUpdate) -> None:
        before, session = self.session.audio.input.format, self.session.updated(message.session)
        self.dialogue.configure(settings.of_dialogue(session), settings.of_session(session, self.notes, self.greeting))
        self.session = session
        if session.audio.input.format != before:
            self.microphone.become(session.audio.input.format.type)
        self.emit("session.updated", session=self.shown())

    @on.register
    def _(self, message: wire.Append) -> None:
        self.dialogue.append_audio(self.microphone.push(from_base64(message.audio, "audio"), time.monotonic()))

    @on.register
    def _(self, message: wire.Commit) -> None:
        if self.microphone.waiting_ms < SHORTEST_TURN:
            raise WireError(
                f"Error committing input audio buffer: it holds {self.microphone.waiting_ms} ms of sound, "
                f"and at least {SHORTEST_TURN} ms are needed.",
                "input_audio_buffer_commit_empty",
            )
        try:
            self.dialogue.commit_audio()
        except UserError as error:
            raise WireError(str(error), "input_audio_buffer_commit_empty") from None
        self.microphone.taken = self.microphone.heard

    @on.register
    def _(self, message: wire.Clear) -> None:
        self.dialogue.clear_audio()
        self.microphone.take(0, self.microphone.heard)
        self.emit("input_audio_buffer.cleared")

    async def prepared(self, message: wire.Message) -> Any:
        """A client's item is made ready to be added: encoding its sound takes a while, and happens beside the loop."""
        if not isinstance(message, wire.ItemCreate):
            return message
        item = from_client(message.item, self.session.audio.input.format.type)
        turn = as_turn(item)
        if turn is not None and isinstance(speech := turn.segments[0], Speech) and speech.pcm is not None:
            codes = await asyncio.to_thread(self.engine.encode, speech.pcm)
            turn = replace(turn, segments=(replace(speech, codes=codes),))
        return Addition(item, turn, message.previous_item_id)

    @on.register
    def _(self, addition: Addition) -> None:
        item = addition.item
        before = self.conversation.add(item, addition.after)
        try:
            self._tell(item, addition.turn)
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
            self.dialogue.delete_turn(item.number)
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
            number = self.dialogue.respond(settings.of_reply(session, wish.instructions))
        except UserError as error:
            raise WireError(f"{busy} ({error}).", "conversation_already_has_active_response") from None
        self.wanted[number] = (session, wish.metadata)

    @on.register
    def _(self, message: wire.ResponseCancel) -> None:
        response = self.response
        if response is None or message.response_id not in (None, response.id) or response.ending is not None:
            raise WireError("Cancellation failed: no active response found", "response_cancel_not_active")
        response.ending = "client_cancelled"
        self.dialogue.interrupt(None)

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
    def _(self, event: UserTurnCommitted) -> None:
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
        if self.log_words:
            log.info("heard", extra={"fields": {"session": self.id, "words": event.text}})
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
    def _(self, event: ReplyDone) -> None:
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

    def _tell(self, item: Item, turn: Turn | None) -> None:
        """Make a client's item known to the model. Errors: `UserError`."""
        notes, greeting = self.notes, self.greeting
        segment = None if turn is None else turn.segments[0]
        if item.role == "system":
            notes += (item.written,)
        elif item.role == "assistant" and isinstance(segment, Speech) and len(self.conversation) == 1:
            greeting = segment
        elif turn is not None:
            item.number = self.dialogue.add_turn(turn)
        if (notes, greeting) != (self.notes, self.greeting):
            self.dialogue.configure(None, settings.of_session(self.session, notes, greeting))
            self.notes, self.greeting = notes, greeting
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
            if self.log_words:
                words = " ".join(item.written for item in response.items)
                log.info("answered", extra={"fields": {"session": self.id, "status": status, "words": words}})
            self.metrics.responses.labels(status).inc()
            if response.heard is not None:
                self.dialogue.truncate(response.number, response.heard)
        self.leave_if_done()
