"""The client messages of the OpenAI Realtime protocol, and their serializer.

message = parse_message({"type": "input_audio_buffer.append", "audio": "…"})        # an InputAudioAppend
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from speechgpt2.server.schema import ProtocolError, WireModel, ineffective, parse_json, shorten, validate
from speechgpt2.server.session_config import (
    AudioFormatConfig,
    FunctionTool,
    MaxTokens,
    Modalities,
    Speed,
    StyleNames,
    ToolChoice,
    VoiceName,
    refuse_beta_fields,
)

# items of the conversation


class Content(WireModel):
    """A part of a message item; `audio` is base64 in the session's input format."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


ItemId = Annotated[str | None, Field(min_length=1, max_length=64)]


class MessageItem(WireModel):
    """A written or spoken message."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Content] = Field(min_length=1)
    id: ItemId = None


class FunctionCallItem(WireModel):
    """A tool call of the assistant."""

    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: ItemId = None
    id: ItemId = None


class FunctionCallOutputItem(WireModel):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    output: str
    id: ItemId = None


class McpApprovalResponseItem(WireModel):
    """The client's decision about a call of an MCP server's tool."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: str | None = None
    id: ItemId = None


ClientItem = Annotated[
    MessageItem | FunctionCallItem | FunctionCallOutputItem | McpApprovalResponseItem, Field(discriminator="type")
]

# messages


def _string_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class ClientMessage(WireModel):
    """Base class of client messages.

    Attributes:
        event_id: The client's own id, which an error event repeats.
        warnings: Fields of the message that have no effect, set by `RealtimeSerializer`.
    """

    event_id: Annotated[str | None, BeforeValidator(_string_or_none)] = None
    type: str = ""
    warnings: tuple[str, ...] = ()


class SessionUpdate(ClientMessage):
    """Change the session's settings."""

    session: dict[str, Any]


class InputAudioAppend(ClientMessage):
    """Append base64 audio to the input audio buffer."""

    audio: str


class InputAudioCommit(ClientMessage):
    """Turn the input audio buffer into a user turn."""


class InputAudioClear(ClientMessage):
    """Drop the input audio buffer."""


class ItemCreate(ClientMessage):
    """Add an item to the conversation."""

    item: ClientItem
    previous_item_id: str | None = None


class ItemTruncate(ClientMessage):
    """Cut a spoken item to the part that was played."""

    item_id: str
    content_index: int = 0
    audio_end_ms: int


class ItemDelete(ClientMessage):
    """Delete an item."""

    item_id: str


class ItemRetrieve(ClientMessage):
    """Ask for an item with its audio."""

    item_id: str


class ResponseAudioOutput(WireModel):
    """The audio settings of one response that differ from the session's; `speed` and `style` are extensions."""

    format: AudioFormatConfig | None = None
    voice: VoiceName | None = None
    speed: Speed | None = None
    style: StyleNames | None = None


class ResponseAudio(WireModel):
    """The audio settings of one response."""

    output: ResponseAudioOutput | None = None


class ResponseConfig(WireModel):
    """Settings of one response that differ from the session's."""

    conversation: Literal["auto", "none"] = "auto"
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    audio: ResponseAudio | None = None
    max_output_tokens: MaxTokens | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    input: list[dict[str, Any]] | None = None


class ResponseCreate(ClientMessage):
    """Ask for a response."""

    response: ResponseConfig | None = None


class ResponseCancel(ClientMessage):
    """Stop the current response."""

    response_id: str | None = None


class OutputAudioClear(ClientMessage):
    """WebRTC only: drop the audio that has not been sent."""


MESSAGE_TYPES: dict[str, type[ClientMessage]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": InputAudioAppend,
    "input_audio_buffer.commit": InputAudioCommit,
    "input_audio_buffer.clear": InputAudioClear,
    "conversation.item.create": ItemCreate,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemDelete,
    "conversation.item.retrieve": ItemRetrieve,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": OutputAudioClear,
}


def parse_message(message: dict[str, Any]) -> ClientMessage:
    """Parse a client message by its `type`.

    Raises:
        ProtocolError: The type is unknown, or a field is invalid; names the field.
    """
    kind = message.get("type")
    if kind is None:
        raise ProtocolError("The message has no 'type'.", "missing_required_parameter", "type")
    if not isinstance(kind, str) or kind not in MESSAGE_TYPES:
        known = ", ".join(MESSAGE_TYPES)
        raise ProtocolError(f"Invalid value: {shorten(kind)}. Supported values are: {known}.", "invalid_value", "type")
    refuse_beta_fields(message.get("response"), "response")
    return validate(MESSAGE_TYPES[kind], {key: value for key, value in message.items() if value is not None})


class RealtimeSerializer:
    """Converts between the JSON text on the wire and messages and events. See `channel.Serializer`."""

    def deserialize(self, data: str | bytes) -> ClientMessage:
        """Parse one client message.

        Raises:
            ProtocolError: It is not valid; carries the message's `event_id`.
        """
        message = parse_json(data)
        try:
            parsed = parse_message(message)
            warnings = tuple(ineffective(parsed, message))
            return parsed.model_copy(update={"warnings": warnings}) if warnings else parsed
        except ProtocolError as error:
            error.event_id = _string_or_none(message.get("event_id"))
            raise

    def serialize(self, event: dict[str, Any]) -> str | None:
        """Format one server event."""
        return json.dumps(event, ensure_ascii=False)
