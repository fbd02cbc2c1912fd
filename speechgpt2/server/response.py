"""One response: the server events of the Realtime protocol in their order.

    response.created
        response.output_item.added · conversation.item.added · response.content_part.added
            …output_audio_transcript.delta · …output_audio.delta         (or …output_text.delta)
            the .done of each · response.content_part.done
        conversation.item.done · response.output_item.done
    response.done

A tool call is an item of its own. A response ends once: completed, cancelled, incomplete or failed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from speechgpt2.server import audio_formats
from speechgpt2.server.audio_formats import WireEncoder
from speechgpt2.server.events import EventSender
from speechgpt2.server.items import ContentPart, ConversationItem, ItemList, new_id
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.types import PATCH_SAMPLES, SAMPLE_RATE

MAX_DELTA = audio_formats.to_samples(60)  # samples; clients expect 20–80 ms in one delta
CLIENT_BUFFER = 0.1  # seconds of audio that a client holds before it starts to play

ResponseStatus = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]


@dataclass
class InputUsage:
    """The model's input since its last response: text tokens (approximated by words) and samples of speech."""

    text_tokens: int = 0
    audio_samples: int = 0

    def take(self) -> InputUsage:
        """Return the counts and reset them."""
        taken = InputUsage(self.text_tokens, self.audio_samples)
        self.text_tokens = self.audio_samples = 0
        return taken


@dataclass
class Usage:
    """Token counts of a response. A patch of 120 ms is one audio token."""

    input: InputUsage = field(default_factory=InputUsage)
    text_tokens: int = 0
    audio_samples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Format the counts for the wire."""
        given = {"text_tokens": self.input.text_tokens, "audio_tokens": -(-self.input.audio_samples // PATCH_SAMPLES)}
        made = {"text_tokens": self.text_tokens, "audio_tokens": -(-self.audio_samples // PATCH_SAMPLES)}
        return {
            "input_tokens": sum(given.values()),
            "output_tokens": sum(made.values()),
            "total_tokens": sum(given.values()) + sum(made.values()),
            "input_token_details": {**given, "cached_tokens": 0},
            "output_token_details": made,
        }


class RealtimeResponse:
    """A response in progress.

    Args:
        events: Sends the server events.
        config: The settings of this response.
        items: The conversation, to which the response adds its items.
        turn: The number of the dialogue's reply.
        input_usage: The model's input since the last response.
        metadata: The client's own data, repeated in the events.

    Attributes:
        first_audio_at: When the first audio was sent, in seconds of `time.monotonic`.
        truncate_at: Samples after which the client truncated the response while it was in progress.
        cancel_reason: Why the response will end as cancelled.
    """

    def __init__(
        self,
        events: EventSender,
        config: SessionConfig,
        items: ItemList,
        turn: int,
        input_usage: InputUsage,
        metadata: dict[str, str] | None = None,
    ):
        self.id, self.turn = new_id("resp"), turn
        self.status: ResponseStatus = "in_progress"
        self.config, self.metadata = config, metadata
        self.output: list[ConversationItem] = []
        self.usage = Usage(input_usage)
        self.first_audio_at: float | None = None
        self.truncate_at: int | None = None
        self.cancel_reason: str | None = None
        self._events, self._items = events, items
        self._reason: str | None = None
        self._error: dict[str, Any] | None = None
        self._encoder = WireEncoder(config.audio.output.format.wire)
        self._open: ConversationItem | None = None  # the message that grows

    @property
    def message(self) -> ConversationItem | None:
        """The spoken or written message, if there is one."""
        return next((item for item in self.output if item.type == "message"), None)

    def start(self) -> None:
        """Announce the response."""
        self._events.send("response.created", response=self.to_dict())

    def add_text(self, text: str) -> None:
        """Send a piece of text."""
        part = self._open_part()
        part.text = (part.text or "") + text
        self.usage.text_tokens += 1
        kind = "output_audio_transcript" if part.is_audio else "output_text"
        self._events.send(f"response.{kind}.delta", **self._location(), delta=text)

    def has_underrun(self, now: float) -> bool:
        """Whether a client that buffers `CLIENT_BUFFER` seconds has played everything that was sent."""
        if self.first_audio_at is None:
            return False
        return now > self.first_audio_at + self.usage.audio_samples / SAMPLE_RATE + CLIENT_BUFFER

    def add_audio(self, pcm: np.ndarray, now: float) -> None:
        """Send a piece of speech, `pcm [N]` float32 at 24 kHz."""
        if self.first_audio_at is None:
            self.first_audio_at = now
        part, pieces = self._open_part(), -(-len(pcm) // MAX_DELTA)
        for piece in np.array_split(pcm, max(1, pieces)):
            data = self._encoder.push(piece)
            self._items.append_audio(part, data)
            delta = base64.b64encode(data).decode()
            self._events.send("response.output_audio.delta", **self._location(), delta=delta)
        self.usage.audio_samples += len(pcm)

    def add_hosted_call(self, name: str, arguments: str, server_label: str) -> ConversationItem:
        """Send a call of a tool that the server runs; returns its item, which gets the result later."""
        self._close_message("completed")
        fields = {"server_label": server_label, "name": name, "arguments": "", "output": None, "error": None}
        item = ConversationItem(new_id("item"), "mcp_call", "assistant", "in_progress", turn=self.turn, fields=fields)
        self._add_item(item)
        location = self._location(item)
        del location["content_index"]
        fields["arguments"], item.name, item.arguments = arguments, name, arguments
        self._events.send("response.mcp_call_arguments.delta", **location, delta=arguments)
        self._events.send("response.mcp_call_arguments.done", **location, arguments=arguments)
        location = {"response_id": self.id, "output_index": self.output.index(item)}
        self._events.send("response.output_item.done", **location, item=item.to_dict())
        return item

    def add_tool_call(self, name: str, arguments: str) -> None:
        """Send a tool call; `arguments` is JSON text."""
        self._close_message("completed")
        item = ConversationItem(
            new_id("item"), "function_call", "assistant", "in_progress", call_id=new_id("call"), name=name
        )
        item.turn = self.turn
        self._add_item(item)
        location = {**self._location(item), "call_id": item.call_id}
        del location["content_index"]
        item.arguments, item.status = arguments, "completed"
        self._events.send("response.function_call_arguments.delta", **location, delta=arguments)
        self._events.send("response.function_call_arguments.done", **location, name=name, arguments=arguments)
        self._finish_item(item)

    def finish(self, status: ResponseStatus, reason: str | None = None, error: dict[str, Any] | None = None) -> None:
        """End the response."""
        self._close_message("completed" if status == "completed" else "incomplete")
        self.status, self._reason, self._error = status, reason, error
        self._events.send("response.done", response=self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Format the response for the wire."""
        details: dict[str, Any] | None = None
        if self.status != "in_progress":
            details = {"type": self.status}
            details |= {"reason": self._reason} if self._reason else {}
            details |= {"error": self._error} if self._error else {}
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": details,
            "output": [item.to_dict() for item in self.output],
            "output_modalities": self.config.output_modalities,
            "audio": {"output": self.config.audio.output.model_dump(include={"format", "voice"})},
            "max_output_tokens": self.config.max_output_tokens,
            "metadata": self.metadata,
            "conversation_id": self._items.conversation_id,
            "usage": None if self.status == "in_progress" else self.usage.to_dict(),
        }

    def _open_part(self) -> ContentPart:
        """Return the content part that grows; the message is added with its first content."""
        if self._open is None:
            kind: Literal["output_audio", "output_text"] = "output_audio" if self.config.speaks else "output_text"
            self._open = ConversationItem(new_id("item"), role="assistant", status="in_progress", turn=self.turn)
            self._add_item(self._open)
            part = ContentPart(kind, format=self.config.audio.output.format.wire)
            self._open.parts.append(part)
            self._events.send("response.content_part.added", **self._location(), part=_part_to_dict(part))
        return self._open.parts[0]

    def _add_item(self, item: ConversationItem) -> None:
        self.output.append(item)
        location = {"response_id": self.id, "output_index": len(self.output) - 1}
        self._events.send("response.output_item.added", **location, item=item.to_dict())
        self._events.send_item_added(item, self._items.add(item))

    def _close_message(self, status: Literal["completed", "incomplete"]) -> None:
        if self._open is None:
            return
        item, part, location = self._open, self._open.parts[0], self._location()
        if part.is_audio:
            self._events.send("response.output_audio.done", **location)
            self._events.send("response.output_audio_transcript.done", **location, transcript=part.text or "")
        else:
            self._events.send("response.output_text.done", **location, text=part.text or "")
        self._events.send("response.content_part.done", **location, part=_part_to_dict(part))
        item.status, self._open = status, None
        self._finish_item(item)

    def _finish_item(self, item: ConversationItem) -> None:
        self._events.send_item_done(item, self._items.previous_id(item.id))
        location = {"response_id": self.id, "output_index": self.output.index(item)}
        self._events.send("response.output_item.done", **location, item=item.to_dict())

    def _location(self, item: ConversationItem | None = None) -> dict[str, Any]:
        """Return the fields that locate an item's content within the response."""
        item = item or self._open
        assert item is not None
        index = self.output.index(item)
        return {"response_id": self.id, "item_id": item.id, "output_index": index, "content_index": 0}


def _part_to_dict(part: ContentPart) -> dict[str, Any]:
    """Format a part for `response.content_part` events, where its type is called `audio` or `text`."""
    if part.is_audio:
        return {"type": "audio", "transcript": part.text or ""}
    return {"type": "text", "text": part.text or ""}
