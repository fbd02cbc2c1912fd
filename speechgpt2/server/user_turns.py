"""The user's side of a Realtime session: the input audio buffer and the turns that are spoken into it."""

from __future__ import annotations

import asyncio
import time

from speechgpt2.errors import UserError
from speechgpt2.server import audio_formats
from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.context import SessionContext
from speechgpt2.server.items import ContentPart, ConversationItem, decode_base64, new_id
from speechgpt2.server.microphone import MicrophoneBuffer
from speechgpt2.server.schema import ProtocolError

NO_TRANSCRIPT = "The model wrote no transcript of this turn."
BACKLOG_POLL_INTERVAL = 0.01  # seconds
MIN_COMMIT_MS = 100  # milliseconds of audio that a client may commit


class UserTurns:
    """Passes the client's audio to the dialogue, and reports the turns that the dialogue detects."""

    def __init__(self, context: SessionContext, format: WireFormat):
        self.context = context
        self.microphone = MicrophoneBuffer(format)
        self._next_item_id = new_id("item")  # of the turn that is or will be spoken
        self._last_item: ConversationItem | None = None  # the latest spoken turn, which a transcript belongs to
        self._untranscribed: ConversationItem | None = None  # the same until its transcript comes

    # client messages

    async def append(self, audio: str) -> None:
        """Process base64 audio, a second at a time: other sessions go on between the seconds of a long message."""
        data = decode_base64(audio, "audio")
        if self.microphone.splits_sample(data):
            raise UserError(f"16-bit samples need an even number of bytes, got {len(data)}")
        second = audio_formats.BYTES_PER_SECOND[self.microphone.format]
        for start in range(0, len(data), second):
            self.append_bytes(data[start : start + second])
            if start + second < len(data):
                await asyncio.sleep(0)
                while self.context.dialogue.backlogged:
                    await asyncio.sleep(BACKLOG_POLL_INTERVAL)

    def append_bytes(self, data: bytes) -> None:
        """Process audio in the input format."""
        self.context.dialogue.append_audio(self.microphone.push(data, time.monotonic()))

    def commit(self) -> None:
        """End the turn by request of the client.

        Raises:
            ProtocolError: There is too little audio.
        """
        if self.microphone.uncommitted_ms < MIN_COMMIT_MS:
            raise ProtocolError(
                f"Error committing input audio buffer: it holds {self.microphone.uncommitted_ms} ms of audio, "
                f"and at least {MIN_COMMIT_MS} ms are needed.",
                "input_audio_buffer_commit_empty",
            )
        try:
            self.context.dialogue.commit_audio()
        except UserError as error:
            raise ProtocolError(str(error), "input_audio_buffer_commit_empty") from None
        self.microphone.committed = self.microphone.received

    def clear(self) -> None:
        """Drop the audio that belongs to no turn."""
        self.context.dialogue.clear_audio()
        self.microphone.take(0, self.microphone.received)
        self.context.events.send("input_audio_buffer.cleared")

    def set_format(self, format: WireFormat) -> None:
        """Expect audio in another format."""
        if format != self.microphone.format:
            self.microphone.set_format(format)

    # dialogue events; samples are counted from the session's start

    def speech_started(self, sample: int) -> None:
        """The user started to speak."""
        self.context.latency.speech_started(self.microphone.time_of(sample))
        start = audio_formats.to_milliseconds(sample)
        self.context.events.send("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self._next_item_id)

    def speech_stopped(self, sample: int) -> None:
        """The user stopped speaking."""
        self.context.latency.speech_stopped(self.microphone.time_of(sample))
        end = audio_formats.to_milliseconds(sample)
        self.context.events.send("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=self._next_item_id)

    def idle_timeout(self, start: int, end: int) -> None:
        """The user was silent for the idle timeout; the silence becomes a turn."""
        self.context.events.send(
            "input_audio_buffer.timeout_triggered",
            audio_start_ms=audio_formats.to_milliseconds(start),
            audio_end_ms=audio_formats.to_milliseconds(end),
            item_id=self._next_item_id,
        )
        self.turn_committed(start, end)

    def turn_committed(self, start: int, end: int, number: int | None = None) -> None:
        """The audio from sample `start` to `end` is the user's turn `number`; add it as an item."""
        context = self.context
        item = ConversationItem(
            self._next_item_id, parts=[ContentPart("input_audio", format=self.microphone.format)], turn=number
        )
        self._next_item_id, self._last_item, self._untranscribed = new_id("item"), item, item
        previous_id = context.items.add(item)
        context.items.append_audio(item.parts[0], self.microphone.take(start, end))
        context.input_usage.audio_samples += end - start
        context.events.send("input_audio_buffer.committed", previous_item_id=previous_id, item_id=item.id)
        context.events.send_item(item, previous_id)

    def transcribed(self, text: str) -> None:
        """The model has written down the user's latest turn."""
        item, context = self._last_item, self.context
        if item is None:
            return
        part = item.parts[0]
        part.text = text
        self._untranscribed = None
        context.log_transcript("user turn", transcript=text)
        if item.id in context.items:
            context.events.save_item(item, context.items.previous_id(item.id))
        if context.config.audio.input.transcription is not None or context.config.only_transcribes:
            kind, location = "conversation.item.input_audio_transcription", {"item_id": item.id, "content_index": 0}
            context.events.send(f"{kind}.delta", **location, delta=text)
            seconds = part.audio_bytes / audio_formats.BYTES_PER_SECOND[part.format]
            usage = {"type": "duration", "seconds": seconds}
            context.events.send(f"{kind}.completed", **location, transcript=text, usage=usage)

    def transcription_ended(self) -> None:
        """In a transcription session: no transcript of the latest turn comes any more. Forget the turn.

        Every turn is transcribed on its own, so that a session may last for hours.
        """
        item, context = self._last_item, self.context
        if item is None:
            return
        if self._untranscribed is item:
            kind = "conversation.item.input_audio_transcription.failed"
            error = {"type": "server_error", "code": "no_transcript", "message": NO_TRANSCRIPT, "param": None}
            context.events.send(kind, item_id=item.id, content_index=0, error=error)
            self._untranscribed = None
        if item.turn is not None:
            context.dialogue.delete_turn(item.turn)
            item.turn = None
