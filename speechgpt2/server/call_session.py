"""A Realtime session of a call, by WebRTC or telephone: audio is apart from events, and goes in real time.

The server holds the audio that it has not sent yet. An interruption drops it at once, and the server knows to the frame
how much of a response was sent.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

from speechgpt2.duplex.protocol import DialogueEvent
from speechgpt2.errors import UserError
from speechgpt2.server import audio_formats, messages
from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.channel import SLOW_CLIENT
from speechgpt2.server.messages import ClientMessage, RealtimeSerializer
from speechgpt2.server.outbound import SlowConsumerError
from speechgpt2.server.playout import PlayoutBuffer
from speechgpt2.server.realtime import RealtimeSession
from speechgpt2.server.response import RealtimeResponse
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.types import AudioDelta, Error, Interrupted, ReplyDone, SpeechStarted

RTP_FORMAT: WireFormat = "audio/pcm"  # of the user's audio, whatever format the session's settings name


class CallSerializer(RealtimeSerializer):
    """The serializer of a data channel, which carries no audio."""

    def serialize(self, event: dict[str, Any]) -> str | None:
        """Format one server event; None for audio."""
        return None if event["type"] == "response.output_audio.delta" else super().serialize(event)


class CallSession(RealtimeSession):
    """A Realtime session with a playout buffer. See `RealtimeSession`."""

    _cut: RealtimeResponse | None = None  # a response in progress whose audio is not played any more

    @cached_property
    def playout(self) -> PlayoutBuffer:
        """The audio that is not sent yet."""
        return PlayoutBuffer(self)

    def input_format(self, config: SessionConfig) -> WireFormat:
        """Return the format of the user's audio: RTP has its own, whatever the settings say."""
        return RTP_FORMAT

    @property
    def busy(self) -> bool:
        """Whether a response is in progress or plays."""
        return super().busy or self.playout.busy

    def append_audio(self, data: bytes, received: bool = True) -> None:
        """Process the microphone's audio.

        Args:
            data: PCM16 at 24 kHz.
            received: Whether the client sent it; otherwise it is silence that stands for missing packets.
        """
        if received:
            self.channel.touch()
        self.user_turns.append_bytes(data)

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a client message. See `WireSession`."""
        match message:
            case messages.OutputAudioClear():
                self._clear_output()
            case _:
                await super().handle_message(message)

    def handle_event(self, event: DialogueEvent) -> None:
        """Act on an event of the dialogue. See `WireSession`."""
        response = self.responses.current
        super().handle_event(event)
        match event:
            case AudioDelta():
                if response is not None and response is not self._cut:
                    self.playout.push(response, event.pcm)
            case SpeechStarted():
                # The dialogue has interrupted the response, unless it estimates that all of it has been played.
                detection = self.context.config.audio.input.turn_detection
                if detection is not None and detection.interrupt_response:
                    self._drop_playout()
            case Interrupted():
                self._drop_playout()
            case ReplyDone() | Error():
                if response is not None:
                    self._finish_playout(response)

    def playout_started(self, response: RealtimeResponse) -> None:
        """Report that a response starts to play. See `PlayoutListener`."""
        self._send_playout_event("started", response)

    def playout_stopped(self, response: RealtimeResponse) -> None:
        """Report that a response has been played. See `PlayoutListener`."""
        self._send_playout_event("stopped", response)
        self.close_if_drained()

    def _send_playout_event(self, name: str, response: RealtimeResponse) -> None:
        try:
            self.events.send(f"output_audio_buffer.{name}", response_id=response.id)
        except SlowConsumerError:  # the caller is aiortc, which would not pass it on
            self.channel.close(1008, SLOW_CLIENT)

    def _clear_output(self) -> None:
        """Drop pending audio and stop the current response, by request of the client."""
        response = self.responses.current
        self._drop_playout()
        if response is not None and response.cancel_reason is None:
            response.cancel_reason = "client_cancelled"
            with suppress(UserError):  # the response has ended already, its event is on the way
                self.dialogue.interrupt(response.truncate_at)

    def _drop_playout(self) -> None:
        """Drop pending audio; cut the conversation and the model's history to what was sent."""
        for entry in self.playout.clear():
            response = entry.response
            self.events.send("output_audio_buffer.cleared", response_id=response.id)
            if response is self.responses.current:
                self._cut, response.truncate_at = response, entry.sent  # truncated when it ends
            else:
                self.dialogue.truncate(response.turn, entry.sent)
                self._truncate_message(response, entry.sent)

    def _finish_playout(self, response: RealtimeResponse) -> None:
        """A response has ended: its last audio is in the playout buffer."""
        self.playout.finish(response)
        if response is self._cut:
            self._truncate_message(response, response.truncate_at or 0)

    def _truncate_message(self, response: RealtimeResponse, played: int) -> None:
        """Cut a response's message to `played` samples."""
        item = response.message
        if item is None or not item.parts[0].is_audio or item.id not in self.items:
            return
        milliseconds = self.items.truncate(item, audio_formats.to_milliseconds(played))
        self.events.send("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=milliseconds)
        self.events.save_item(item, self.items.previous_id(item.id))
