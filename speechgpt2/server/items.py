"""The items of a Realtime conversation, which client and server name by id.

The engine holds the model's own history. This list holds what a client can retrieve: all texts, and the audio of the
latest items within a byte budget.
"""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from speechgpt2.server.audio_formats import BYTES_PER_SECOND, WireDecoder, WireFormat
from speechgpt2.server.messages import Content, FunctionCallItem, FunctionCallOutputItem, MessageItem
from speechgpt2.server.schema import ProtocolError
from speechgpt2.types import Speech, Text, ToolCall, Turn

MAX_AUDIO_BYTES = 8 * 2**20  # of all items of a session, for `conversation.item.retrieve`; 3 min of PCM16
MAX_ITEMS = 2_000  # the oldest are dropped first
ROOT = "root"  # the `previous_item_id` that means the beginning

ItemType = Literal[
    "message",
    "function_call",
    "function_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


def new_id(prefix: str) -> str:
    """Return a random id such as `item_3f…`."""
    return f"{prefix}_{secrets.token_hex(10)}"


@dataclass
class ContentPart:
    """A part of a message.

    Attributes:
        text: The text, or the transcript of the audio.
        audio: The audio that is kept, in `format`.
        audio_bytes: Size of the audio, dropped audio included.
    """

    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: str | None = None
    audio: bytearray = field(default_factory=bytearray)
    format: WireFormat = "audio/pcm"
    audio_bytes: int = 0

    @property
    def is_audio(self) -> bool:
        """Whether the part is spoken."""
        return self.type.endswith("audio")

    def to_dict(self, with_audio: bool = False) -> dict[str, Any]:
        """Format the part for the wire; audio only on request."""
        if not self.is_audio:
            return {"type": self.type, "text": self.text or ""}
        result: dict[str, Any] = {"type": self.type, "transcript": self.text}
        if with_audio:
            result["audio"] = base64.b64encode(self.audio).decode()
        return result


@dataclass
class ConversationItem:
    """A message, a tool call, or a tool's result; `turn` is the number of its turn or reply in the dialogue.

    `fields` are what an item of MCP has besides.
    """

    id: str
    type: ItemType = "message"
    role: Literal["user", "assistant", "system"] = "user"
    status: ItemStatus = "completed"
    parts: list[ContentPart] = field(default_factory=list)
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str = ""
    turn: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def to_dict(self, with_audio: bool = False) -> dict[str, Any]:
        """Format the item for the wire."""
        base = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type == "message":
            return {**base, "role": self.role, "content": [part.to_dict(with_audio) for part in self.parts]}
        if self.type.startswith("mcp_"):
            return {**base, **self.fields}
        if self.type == "function_call":
            return {**base, "call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {**base, "call_id": self.call_id, "output": self.output}

    @property
    def text(self) -> str:
        """The item's text: the parts of a message, the arguments of a tool call, or the output of a tool."""
        return "\n".join([part.text for part in self.parts if part.text] or filter(None, [self.arguments, self.output]))


class ItemList:
    """The items of one conversation in their order."""

    def __init__(self) -> None:
        self.conversation_id = new_id("conv")
        self._items: OrderedDict[str, ConversationItem] = OrderedDict()
        self._audio_bytes = 0

    def __iter__(self) -> Iterator[ConversationItem]:
        return iter(self._items.values())

    def __contains__(self, id: object) -> bool:
        return id in self._items

    def __len__(self) -> int:
        return len(self._items)

    @property
    def have_assistant_audio(self) -> bool:
        """Whether the assistant has spoken."""
        return any(item.role == "assistant" and any(part.is_audio for part in item.parts) for item in self)

    def add(self, item: ConversationItem, previous_id: str | None = None) -> str | None:
        """Insert an item after the item `previous_id`, or at the end.

        Returns:
            The id of the item before it; None if it is the first.

        Raises:
            ProtocolError: The item's id exists already, or `previous_id` does not exist.
        """
        if item.id in self._items:
            raise ProtocolError(
                f"An item with id '{item.id}' already exists.", "item_create_duplicate_item_id", "item.id"
            )
        if previous_id is not None and previous_id != ROOT and previous_id not in self._items:
            code = "item_create_invalid_previous_item_id"
            raise ProtocolError(f"There is no item '{previous_id}'.", code, "previous_item_id")
        order = list(self._items)
        positions = {None: len(order), ROOT: 0} | {id: position for position, id in enumerate(order, 1)}
        index = positions[previous_id]
        self._items[item.id] = item
        for later in order[index:]:
            self._items.move_to_end(later)
        if len(self._items) > MAX_ITEMS:
            self._audio_bytes -= sum(len(part.audio) for part in self._items.popitem(last=False)[1].parts)
        return order[index - 1] if index else None

    def previous_id(self, id: str) -> str | None:
        """Return the id of the item before the item `id`."""
        previous = None
        for other in self._items:
            if other == id:
                return previous
            previous = other
        return None

    def get(self, id: str, error_code: str) -> ConversationItem:
        """Return the item `id`.

        Raises:
            ProtocolError: It does not exist; has the code `error_code`.
        """
        if id not in self._items:
            raise ProtocolError(f"There is no item '{id}'.", error_code, "item_id")
        return self._items[id]

    def delete(self, id: str) -> ConversationItem:
        """Remove and return the item `id`.

        Raises:
            ProtocolError: It does not exist.
        """
        item = self.get(id, "item_delete_invalid_item_id")
        del self._items[id]
        self._audio_bytes -= sum(len(part.audio) for part in item.parts)
        return item

    def append_audio(self, part: ContentPart, data: bytes) -> None:
        """Append audio to a part; drop the oldest audio of other parts beyond the budget."""
        part.audio += data
        part.audio_bytes += len(data)
        self._audio_bytes += len(data)
        for item in self._items.values():
            if self._audio_bytes <= MAX_AUDIO_BYTES:
                return
            for old in item.parts:
                if old is not part:
                    self._audio_bytes -= len(old.audio)
                    old.audio.clear()

    def truncate(self, item: ConversationItem, milliseconds: int) -> int:
        """Drop an item's audio after `milliseconds`, and its transcript.

        Returns:
            `milliseconds`, clamped to the length of the audio.
        """
        part, rate = item.parts[0], BYTES_PER_SECOND[item.parts[0].format]
        milliseconds = min(max(0, milliseconds), part.audio_bytes * 1000 // rate)
        size = milliseconds * rate // 1000
        self._audio_bytes -= max(0, len(part.audio) - size)
        del part.audio[size:]
        part.text, part.audio_bytes = None, size
        return milliseconds


def item_from_saved(values: dict[str, Any], turn: int | None) -> ConversationItem:
    """Convert an item of a saved session, as `ConversationItem.to_dict` returned it. Its audio is not kept."""
    parts = [ContentPart(part["type"], part.get("text", part.get("transcript"))) for part in values.get("content", ())]
    assistant = values["type"] not in ("message", "function_call_output")
    item = ConversationItem(
        values["id"],
        values["type"],
        values.get("role", "assistant" if assistant else "user"),
        values["status"],
        parts,
        turn=turn,
    )
    if item.type.startswith("mcp_"):
        item.fields = {key: value for key, value in values.items() if key not in {"id", "object", "type", "status"}}
        return item
    item.call_id, item.name = values.get("call_id", ""), values.get("name", "")
    item.arguments, item.output = values.get("arguments", ""), values.get("output", "")
    return item


def item_from_client(
    item: MessageItem | FunctionCallItem | FunctionCallOutputItem, format: WireFormat
) -> ConversationItem:
    """Convert a client's item, whose audio is in `format`.

    Raises:
        ProtocolError: Its content does not fit its role, or its audio is not valid base64.
    """
    id = item.id or new_id("item")
    if isinstance(item, FunctionCallItem):
        call_id = item.call_id or new_id("call")
        return ConversationItem(
            id, "function_call", "assistant", call_id=call_id, name=item.name, arguments=item.arguments
        )
    if isinstance(item, FunctionCallOutputItem):
        return ConversationItem(id, "function_call_output", call_id=item.call_id, output=item.output)
    parts = [
        _part_from_client(content, item.role, format, f"item.content[{index}]")
        for index, content in enumerate(item.content)
    ]
    return ConversationItem(id, role=item.role, parts=parts)


def _part_from_client(content: Content, role: str, format: WireFormat, path: str) -> ContentPart:
    side = "output" if role == "assistant" else "input"
    kind = f"{side}_text" if content.type == "text" else content.type
    if not kind.startswith(side):
        raise ProtocolError(f"A message of role '{role}' cannot hold '{content.type}'.", param=f"{path}.type")
    if kind == "input_audio" and role == "system":
        raise ProtocolError("A system message must be text.", param=f"{path}.type")
    if kind.endswith("text"):
        if content.text is None:
            raise ProtocolError(f"{path}.text is missing.", "missing_required_parameter", f"{path}.text")
        return ContentPart(kind, content.text)  # type: ignore[arg-type]
    if content.audio is None and content.transcript is None:
        raise ProtocolError(f"{path}.audio is missing.", "missing_required_parameter", f"{path}.audio")
    data = decode_base64(content.audio or "", f"{path}.audio")
    return ContentPart(kind, content.transcript, bytearray(data), format, len(data))  # type: ignore[arg-type]


def turn_from_item(item: ConversationItem) -> Turn | None:
    """Convert an item to a turn of one segment, which is speech if the item has audio. None for a system message."""
    if item.type == "function_call":
        return Turn("assistant", (ToolCall(item.name, item.arguments),))
    if item.type == "function_call_output":
        return Turn("tool", (Text(item.output),))
    if item.role == "system":
        return None
    spoken = next((part for part in item.parts if part.audio), None)
    if spoken is None:
        return Turn(item.role, (Text(item.text),))
    pcm = WireDecoder(spoken.format).push(bytes(spoken.audio))
    return Turn(item.role, (Speech(pcm=pcm, text=item.text or None),))


def decode_base64(text: str, path: str) -> bytes:
    """Decode base64.

    Raises:
        ProtocolError: `text` is not valid; names the field `path`.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ProtocolError(f"{path} is not valid base64.", "invalid_value", path) from None
