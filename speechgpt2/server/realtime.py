"""One client's session in the OpenAI Realtime protocol.

A client message calls a method of the dialogue; an event of the dialogue becomes server events:

    client                                         this session                  dialogue
    input_audio_buffer.append ─────────────────►  UserTurns.append  ──────────►  append_audio
                     ◄── speech_started, speech_stopped, committed ────────────  SpeechStarted … UserTurnCommitted
    response.create  ──────────────────────────►  Responses.create  ──────────►  respond
                     ◄── response.created … deltas … response.done ────────────  ReplyStarted … TextDelta … ReplyDone
    response.cancel, conversation.item.truncate ──────────────────────────────►  interrupt, truncate

Messages and events are handled one at a time, in the loops of channel.py. Only the creation of a spoken item waits: its
audio is encoded in a thread, before the session changes anything.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from speechgpt2.duplex.protocol import (
    Dialogue,
    DialogueEvent,
    Engine,
    IdleTimeout,
    ReplyStarted,
    SessionSettings,
    UserTurnCommitted,
)
from speechgpt2.errors import UserError
from speechgpt2.server import messages, settings
from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.channel import SLOW_CLIENT, Channel, Serializer, WireSession
from speechgpt2.server.context import SessionContext
from speechgpt2.server.events import EventSender
from speechgpt2.server.hosted_tools import HostedTools
from speechgpt2.server.items import ConversationItem, item_from_client, turn_from_item
from speechgpt2.server.messages import ClientMessage, ResponseConfig
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.personas import Personas
from speechgpt2.server.responses import Responses
from speechgpt2.server.saved_sessions import SessionRecord, restore_items
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig, ineffective_settings, unused_tools
from speechgpt2.server.tool_calls import ToolCalls
from speechgpt2.server.user_turns import UserTurns
from speechgpt2.server.voices import Voices
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

if TYPE_CHECKING:
    from speechgpt2.server.gateway import Gateway

S = TypeVar("S", bound="RealtimeSession")
NO_OUTPUT_BUFFER = "A WebSocket session has no output audio buffer: truncate the item instead."


class RealtimeSession(WireSession[ClientMessage]):
    """One Realtime session. The caller opens and closes the dialogue and runs the channel.

    Args:
        dialogue: The dialogue with the model.
        engine: Encodes the audio of items that the client adds.
        config: The session's initial settings.
        channel: Carries the server events.
        metrics: The server's metrics.
        hosted: The tools that the server runs.
        personas: The personas that the session may choose.
        log_transcripts: Whether the log contains what is said.
        record: Where the session is saved. If it was saved before, it is resumed.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        engine: Engine,
        config: SessionConfig,
        channel: Channel[ClientMessage],
        metrics: Metrics,
        hosted: HostedTools,
        personas: Personas,
        log_transcripts: bool = False,
        record: SessionRecord | None = None,
    ):
        self.dialogue, self.engine, self.channel = dialogue, engine, channel
        self.events = EventSender(channel, metrics)
        self.context = SessionContext(
            config, dialogue, self.events, metrics, Voices(engine.voices), log_transcripts, personas, engine.reads_aloud
        )
        saved = None
        if record is not None:
            self.context.id, saved = record.id, record.saved
        self.id, self.items = self.context.id, self.context.items
        self.user_turns = UserTurns(self.context, self.input_format(config))
        self.responses = Responses(self.context)
        self.system_messages: tuple[str, ...] = ()
        self.greeting: Speech | None = None
        self.draining = False
        close = partial(channel.close, 1008, SLOW_CLIENT)
        self.tool_calls = ToolCalls(self.context, self.responses, hosted, self._configure, close)
        if saved is not None:
            self.system_messages, self.greeting = restore_items(self.items, saved)
        if self.context.hosted_tools or saved is not None:
            self._configure()
        self.events.send("session.created", session=self.to_dict())
        for item in self.items:
            self.events.send_item(item, self.items.previous_id(item.id))
        self.events.record = record
        self.events.save_settings(config)

    def input_format(self, config: SessionConfig) -> WireFormat:
        """Return the format of the user's audio."""
        return config.audio.input.format.wire

    async def work(self) -> None:
        """Run the calls of the server's tools. See `WireSession`."""
        await self.tool_calls.work()

    def to_dict(self) -> dict[str, Any]:
        """Format the session's settings for the wire."""
        ends = int(time.time() + self.channel.opened_at + self.channel.limits.session_seconds - time.monotonic())
        return {"id": self.id, "object": "realtime.session", "expires_at": ends, **self.context.config.model_dump()}

    def summary(self) -> dict[str, Any]:
        """Return what the log says about the session: no transcripts, no audio."""
        seconds = round(time.monotonic() - self.channel.opened_at, 3)
        received = round(self.user_turns.microphone.received / SAMPLE_RATE, 3)
        return {"session": self.id, "seconds": seconds, "received_seconds": received, "items": len(self.items)}

    @property
    def busy(self) -> bool:
        """Whether a response is in progress."""
        return self.responses.busy

    def drain(self) -> None:
        """Close the session when its current response has ended; now if there is none."""
        self.draining = True
        self.close_if_drained()

    def close_if_drained(self) -> None:
        """Close a draining session that has no response in progress."""
        if self.draining and not self.busy:
            self.channel.close(1001, "the server is shutting down")

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a client message. See `WireSession`."""
        self.events.warn(message.warnings)
        match message:
            case messages.InputAudioAppend():
                await self.user_turns.append(message.audio)
            case messages.InputAudioCommit():
                self.user_turns.commit()
            case messages.InputAudioClear():
                self.user_turns.clear()
                self.tool_calls.speech_ended()
            case messages.ResponseCreate():
                self.responses.create(message.response or ResponseConfig())
            case messages.ResponseCancel():
                self.tool_calls.cancel(message.response_id)
            case messages.SessionUpdate():
                self._update(message.session)
            case messages.ItemCreate():
                await self._create_item(message)
            case messages.ItemRetrieve():
                item = self.items.get(message.item_id, "item_retrieve_invalid_item_id")
                self.events.send("conversation.item.retrieved", item=item.to_dict(with_audio=True))
            case messages.ItemDelete():
                self._delete_item(message.item_id)
            case messages.ItemTruncate():
                self.responses.truncate_item(message)
            case messages.OutputAudioClear():
                raise ProtocolError(NO_OUTPUT_BUFFER, param="type")
            case _:
                raise TypeError(f"unhandled message {type(message).__name__}")

    def handle_event(self, event: DialogueEvent) -> None:
        """Act on an event of the dialogue. See `WireSession`."""
        match event:
            case SpeechStarted():
                self.user_turns.speech_started(event.at)
                self.tool_calls.speech_started()
            case SpeechStopped():
                self.user_turns.speech_stopped(event.at)
            case UserTurnCommitted():
                self.user_turns.turn_committed(event.start, event.end, event.number)
                self.tool_calls.turn_added()
                self.tool_calls.speech_ended()
                if self.context.config.only_transcribes and self.context.config.audio.input.turn_detection is None:
                    self.dialogue.respond()
            case IdleTimeout():
                self.user_turns.idle_timeout(event.start, event.end)
            case Transcript():
                self.user_turns.transcribed(event.text)
                if self.context.config.only_transcribes:
                    with suppress(UserError):  # the reply may be complete already
                        self.dialogue.interrupt(0)
            case ReplyStarted() | TextDelta() | AudioDelta() | ToolCall() if self.context.config.only_transcribes:
                pass  # the model's reply begins with the transcript, and nobody reads the rest
            case ReplyStarted():
                self.responses.started(event.number)
                self.tool_calls.reply_started()
            case TextDelta():
                self.responses.add_text(event.text)
            case AudioDelta():
                self.responses.add_audio(event.pcm)
            case ToolCall():
                self.tool_calls.called(event)
            case Interrupted():
                self.responses.interrupted()
            case ReplyDone() if self.context.config.only_transcribes:
                self.user_turns.transcription_ended()
                self.close_if_drained()
            case ReplyDone():
                response = self.responses.current
                self.responses.done(event)
                self.tool_calls.response_ended(response, event.reason)
                self.close_if_drained()
            case Error():
                self._fail(event.message)
            case _:
                raise TypeError(f"unhandled event {type(event).__name__}")

    def handle_error(self, error: ProtocolError, message: ClientMessage | None) -> None:
        """Send an error event. See `WireSession`."""
        self.events.send_error(error, error.event_id if message is None else message.event_id)

    def _fail(self, message: str) -> None:
        """The current response has failed, or the session without a response."""
        if (response := self.responses.current) is None:
            self.events.send_error(ProtocolError(message, "server_error", kind="server_error"))
            return
        self.responses.failed(message)
        self.tool_calls.response_ended(response, "interrupted")
        self.close_if_drained()

    def _update(self, changes: dict[str, Any]) -> None:
        """Change the session's settings."""
        changes = self.context.personas.expand(changes, "session")
        config = self.context.voices.resolve(self.context.config.updated(changes), "session")
        self.context.check_voice(config.audio.output.voice)
        if config.type != self.context.config.type:
            raise ProtocolError("The type of a session cannot change.", "invalid_value", "session.type")
        self.tool_calls.check(config)
        voice, tools = self.context.voices.warnings_for(changes, "session"), unused_tools(self.engine, changes)
        self.events.warn([*voice, *ineffective_settings(config, changes), *tools])
        self.dialogue.configure(settings.dialogue_settings(config), self._session_settings(config))
        self.context.config = config
        self.events.save_settings(config)
        self.user_turns.set_format(self.input_format(config))
        self.events.send("session.updated", session=self.to_dict())
        self.tool_calls.update()

    def _session_settings(self, config: SessionConfig) -> SessionSettings:
        hosted = self.context.hosted_tools
        return settings.session_settings(config, self.system_messages, self.greeting, hosted=hosted)

    def _configure(self) -> None:
        """Tell the model of other tools."""
        self.dialogue.configure(None, self._session_settings(self.context.config))

    # items

    async def _create_item(self, message: messages.ItemCreate) -> None:
        if isinstance(message.item, messages.McpApprovalResponseItem):
            self.tool_calls.runner.approve(message.item)
            return
        item = item_from_client(message.item, self.context.config.audio.input.format.wire)
        turn = await _with_codes(turn_from_item(item), self.engine)
        previous_id = self.items.add(item, message.previous_item_id)
        try:
            self._add_to_history(item, turn)
        except UserError:
            self.items.delete(item.id)
            raise
        self.events.send_item(item, previous_id)

    def _add_to_history(self, item: ConversationItem, turn: Turn | None) -> None:
        """Add a client's item to the model's history. Raises `UserError` if the model does not accept it.

        A system message extends the instructions; the assistant's speech as the first item is the greeting.
        """
        system_messages, greeting = self.system_messages, self.greeting
        segment = None if turn is None else turn.segments[0]
        if item.role == "system":
            system_messages += (item.text,)
        elif item.role == "assistant" and isinstance(segment, Speech) and len(self.items) == 1:
            greeting = segment
        elif turn is not None:
            item.turn = self.dialogue.add_turn(turn)
        if (system_messages, greeting) != (self.system_messages, self.greeting):
            hosted, config = self.context.hosted_tools, self.context.config
            new = settings.session_settings(config, system_messages, greeting, hosted=hosted)
            self.dialogue.configure(None, new)
            self.system_messages, self.greeting = system_messages, greeting
        if item.type == "message" and item.role == "user":
            self.tool_calls.turn_added()
        if isinstance(segment, Speech) and segment.pcm is not None:
            self.context.input_usage.audio_samples += len(segment.pcm)
        self.context.input_usage.text_tokens += len(item.text.split())

    def _delete_item(self, id: str) -> None:
        item = self.items.delete(id)
        self.events.save_deletion(id)
        if item.turn is not None:
            self.dialogue.delete_turn(item.turn)
        self.events.send("conversation.item.deleted", item_id=item.id)


async def _with_codes(turn: Turn | None, engine: Engine) -> Turn | None:
    """Encode the audio of a turn, if it has any, on a thread."""
    if turn is None or not isinstance(speech := turn.segments[0], Speech) or speech.pcm is None:
        return turn
    codes = await asyncio.to_thread(engine.encode, speech.pcm)
    return replace(turn, segments=(replace(speech, codes=codes),))


def make_session(
    kind: type[S],
    gateway: Gateway,
    serializer: Serializer[ClientMessage],
    dialogue: Dialogue,
    config: SessionConfig,
    record: SessionRecord | None = None,
) -> S:
    """Make a Realtime session with a channel of its own.

    Args:
        kind: `RealtimeSession`, or a subclass for another transport.
        gateway: The gateway that opens the session.
        serializer: Formats the events for the transport.
        dialogue: The dialogue with the model.
        config: The session's initial settings.
        record: Where the session is saved.
    """
    channel: Channel[ClientMessage] = Channel(serializer, gateway.config.limits)
    shared = gateway.metrics, gateway.tools, gateway.personas, gateway.config.log_transcripts
    return kind(dialogue, gateway.engine, config, channel, *shared, record)
