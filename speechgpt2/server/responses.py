"""The responses of a Realtime session, one after the other."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.errors import UserError
from speechgpt2.server import audio_formats, settings
from speechgpt2.server.context import SessionContext
from speechgpt2.server.messages import ItemTruncate, ResponseConfig
from speechgpt2.server.response import RealtimeResponse, ResponseStatus
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.types import ReplyDone

ACTIVE = "conversation_already_has_active_response"


class Responses:
    """Creates and cancels responses, and reports what the dialogue generates for them."""

    def __init__(self, context: SessionContext):
        self.context = context
        self.current: RealtimeResponse | None = None
        self._requested: dict[int, tuple[SessionConfig, dict[str, str] | None]] = {}  # by number, not yet started

    @property
    def busy(self) -> bool:
        """Whether a response is in progress or requested."""
        return self.current is not None or bool(self._requested)

    # client messages

    def create(self, request: ResponseConfig) -> None:
        """Ask the dialogue for a reply.

        Raises:
            ProtocolError: A response is in progress, or the request is not supported.
        """
        if self.context.config.only_transcribes:
            raise ProtocolError("A transcription session has no responses.", "invalid_value", "type")
        message = "Conversation already has an active response in progress"
        if self.busy:
            raise ProtocolError(f"{message}.", ACTIVE)
        if request.conversation == "none" or request.input is not None:
            param = "response.conversation" if request.conversation == "none" else "response.input"
            raise ProtocolError("A response outside of the conversation is not supported.", "unsupported_value", param)
        changes = request.model_dump(exclude_none=True, exclude={"metadata", "conversation", "input"})
        config = self.context.voices.resolve(self.context.config.updated(changes, "response"), "response")
        if config.audio.output.voice != self.context.config.audio.output.voice:
            raise ProtocolError(
                "A response has the voice of its session: set session.audio.output.voice before the first one.",
                "unsupported_value",
                "response.audio.output.voice",
            )
        self.context.events.warn(self.context.voices.warnings_for(changes, "response"))
        try:
            output = request.audio.output if request.audio is not None else None
            style = output.style if output is not None else None
            options = settings.reply_options(config, request.instructions, self.context.hosted_tools, style)
            number = self.context.dialogue.respond(self._greeting(config, options))
        except UserError as error:
            raise ProtocolError(f"{message} ({error}).", ACTIVE) from None
        self._requested[number] = (config, request.metadata)

    def _greeting(self, config: SessionConfig, options: ReplyOptions) -> ReplyOptions:
        """The first response of a persona is its greeting, word for word if the model can read it aloud."""
        persona = self.context.personas.find(config.persona)
        if persona is None or persona.greeting is None or len(self.context.items):
            return options
        if config.speaks and self.context.reads_aloud:
            return replace(options, text=persona.greeting)
        instructions = options.instructions or config.instructions
        return replace(options, instructions=f"{instructions}\nBegin with these words: {persona.greeting}")

    def cancel(self, response_id: str | None) -> None:
        """Stop the current response.

        Raises:
            ProtocolError: No response with this id is in progress.
        """
        response = self.current
        if response is None or response_id not in (None, response.id) or response.cancel_reason is not None:
            raise ProtocolError("Cancellation failed: no active response found", "response_cancel_not_active")
        response.cancel_reason = "client_cancelled"
        self.context.dialogue.interrupt(None)

    def truncate_item(self, message: ItemTruncate) -> None:
        """Cut a spoken item, and the model's history, to what the client has played."""
        item = self.context.items.get(message.item_id, "item_truncate_invalid_item_id")
        if item.role != "assistant" or not item.parts or not item.parts[0].is_audio:
            raise ProtocolError("Only the assistant's speech can be truncated.", "invalid_value", "item_id")
        milliseconds = self.context.items.truncate(item, message.audio_end_ms)
        played, response = audio_formats.to_samples(milliseconds), self.current
        if response is not None and item in response.output:
            response.truncate_at = played  # the item may still grow; the history is cut when the response ends
        elif item.turn is not None:
            self.context.dialogue.truncate(item.turn, played)
        location = {"item_id": item.id, "content_index": message.content_index}
        self.context.events.send("conversation.item.truncated", **location, audio_end_ms=milliseconds)
        self.context.events.save_item(item, self.context.items.previous_id(item.id))

    # dialogue events

    def started(self, number: int) -> None:
        """The reply `number` has started."""
        config, metadata = self._requested.pop(number, (self.context.config, None))
        usage = self.context.input_usage.take()
        self.current = RealtimeResponse(self.context.events, config, self.context.items, number, usage, metadata)
        self.current.start()

    def add_text(self, text: str) -> None:
        """Text was generated."""
        if self.current is not None:
            self.current.add_text(text)

    def add_audio(self, pcm: np.ndarray) -> None:
        """Speech was generated, `pcm [N]`."""
        if self.current is None:
            return
        now = time.monotonic()
        if self.current.first_audio_at is None:
            self.context.latency.first_audio()
        if self.current.has_underrun(now):
            self.context.metrics.underruns.inc()
        self.current.add_audio(pcm, now)

    def add_tool_call(self, name: str, arguments: str) -> None:
        """The model called a tool."""
        if self.current is not None:
            self.current.add_tool_call(name, arguments)

    def interrupted(self) -> None:
        """The current response was interrupted, by the user's speech unless the client has cancelled it."""
        if self.current is not None and self.current.cancel_reason is None:
            self.current.cancel_reason = "turn_detected"
            self.context.latency.interrupted()

    def done(self, event: ReplyDone) -> None:
        """The reply has ended."""
        if event.reason == "interrupted":
            self._finish("cancelled", self.current.cancel_reason if self.current is not None else None)
        elif event.reason == "length":
            self._finish("incomplete", "max_output_tokens")
        else:
            self._finish("completed")

    def failed(self, message: str) -> None:
        """The current response has failed."""
        self._finish("failed", error={"type": "server_error", "code": "server_error", "message": message})

    def _finish(self, status: ResponseStatus, reason: str | None = None, error: dict[str, str] | None = None) -> None:
        response, self.current = self.current, None
        if response is None:
            return
        response.finish(status, reason, error)
        text = " ".join(item.text for item in response.output)
        self.context.log_transcript("response", status=status, transcript=text)
        self.context.metrics.responses.labels(status).inc()
        if response.truncate_at is not None:
            self.context.dialogue.truncate(response.turn, response.truncate_at)
