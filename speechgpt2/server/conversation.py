"""The conversation as the wire tells it: items with ids that client and server name.

The model's own memory is the engine's affair; here is what a client can ask back: who said what, and, as long as the
budget lasts, the sound of it.
"""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

from speechgpt2.server.formats import BYTES_PER_SECOND, Decoder, Format
from speechgpt2.server.wire import Content, FunctionCall, FunctionCallOutput, MessageItem, WireError
from speechgpt2.types import Speech, Text, ToolCall, Turn

KEPT_SOUND = 8 * 2**20  # bytes of sound that a session keeps for `conversation.item.retrieve`; 3 min of PCM16
KEPT_ITEMS = 2_000  # a day of talk; the oldest go first
ROOT = "root"  # names the place before the first item

Kind = Literal["message", "function_call", "function_call_output"]
Status = Literal["in_progress", "completed", "incomplete"]


def new_id(kind: str) -> str:
    """A fresh id such as `item_3f…`."""
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass
class Part:
    """A piece of a message. `sound` is in `format`; `size` counts its bytes, those let go included. `text` is what is
    written or said.
    """

    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: str | None = None
    sound: bytearray = field(default_factory=bytearray)
    format: Format = "audio/pcm"
    size: int = 0

    @property
    def spoken(self) -> bool:
        return self.type.endswith("audio")

    def shown(self, with_sound: bool = False) -> dict[str, Any]:
        """As the wire shows it; the sound only where it is asked for."""
        if not self.spoken:
            return {"type": self.type, "text": self.text or ""}
        shown: dict[str, Any] = {"type": self.type, "transcript": self.text}
        if with_sound:
            shown["audio"] = base64.b64encode(self.sound).decode()
        return shown


@dataclass
class Item:
    """A message, a call of a function, or what the function gave; `number` is the model's name for it."""

    id: str
    type: Kind = "message"
    role: Literal["user", "assistant", "system"] = "user"
    status: Status = "completed"
    parts: list[Part] = field(default_factory=list)
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str = ""
    number: int | None = None

    def shown(self, with_sound: bool = False) -> dict[str, Any]:
        """As the wire shows it."""
        shown = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type == "message":
            return {**shown, "role": self.role, "content": [part.shown(with_sound) for part in self.parts]}
        if self.type == "function_call":
            return {**shown, "call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {**shown, "call_id": self.call_id, "output": self.output}

    @property
    def written(self) -> str:
        """All its text: of a function its arguments, or what it gave."""
        return "\n".join([part.text for part in self.parts if part.text] or filter(None, [self.arguments, self.output]))


class Conversation:
    """The items in their order."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._sound = 0

    def __iter__(self) -> Any:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        """The id of the newest item."""
        return next(reversed(self._items), None)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put `item` behind the item `after`, or at the end; returns the id of the one before it, None if it is first.

        Errors: `WireError` for an id that is there already, or an `after` that is not.
        """
        if item.id in self._items:
            raise WireError(f"An item with id '{item.id}' already exists.", "item_create_duplicate_item_id", "item.id")
        if after is not None and after != ROOT and after not in self._items:
            raise WireError(f"There is no item '{after}'.", "item_create_invalid_previous_item_id", "previous_item_id")
        order = list(self._items)
        place = len(order) if after is None else 0 if after == ROOT else order.index(after) + 1
        self._items[item.id] = item
        for later in order[place:]:
            self._items.move_to_end(later)
        if len(self._items) > KEPT_ITEMS:
            self._sound -= sum(len(part.sound) for part in self._items.popitem(last=False)[1].parts)
        return order[place - 1] if place else None

    def before(self, id: str) -> str | None:
        """The id of the item before `id`."""
        previous = None
        for other in self._items:
            if other == id:
                return previous
            previous = other
        return None

    def get(self, id: str, code: str) -> Item:
        """The item `id`. Errors: `WireError` with `code`."""
        if id not in self._items:
            raise WireError(f"There is no item '{id}'.", code, "item_id")
        return self._items[id]

    def delete(self, id: str) -> Item:
        """Take an item out. Errors: `WireError`."""
        item = self.get(id, "item_delete_invalid_item_id")
        del self._items[id]
        self._sound -= sum(len(part.sound) for part in item.parts)
        return item

    def hear(self, part: Part, sound: bytes) -> None:
        """Add sound to a part, letting go of the oldest sound beyond the budget."""
        part.sound += sound
        part.size += len(sound)
        self._sound += len(sound)
        for item in self._items.values():
            if self._sound <= KEPT_SOUND:
                return
            for old in item.parts:
                if old is not part:
                    self._sound -= len(old.sound)
                    old.sound.clear()

    def cut(self, item: Item, milliseconds: int) -> int:
        """Forget what an item says after so many milliseconds, and its words; returns how many there were at most."""
        part, rate = item.parts[0], BYTES_PER_SECOND[item.parts[0].format]
        milliseconds = min(max(0, milliseconds), part.size * 1000 // rate)
        size = milliseconds * rate // 1000
        self._sound -= max(0, len(part.sound) - size)
        del part.sound[size:]
        part.text, part.size = None, size
        return milliseconds


def from_client(item: MessageItem | FunctionCall | FunctionCallOutput, format: Format) -> Item:
    """A client's item, its sound in `format`.

    Errors: `WireError` for content that does not belong to its role, or is no base64.
    """
    id = item.id or new_id("item")
    if isinstance(item, FunctionCall):
        call_id = item.call_id or new_id("call")
        return Item(id, "function_call", "assistant", call_id=call_id, name=item.name, arguments=item.arguments)
    if isinstance(item, FunctionCallOutput):
        return Item(id, "function_call_output", call_id=item.call_id, output=item.output)
    parts = [_part(content, item.role, format, f"item.content[{place}]") for place, content in enumerate(item.content)]
    return Item(id, role=item.role, parts=parts)


def _part(content: Content, role: str, format: Format, where: str) -> Part:
    side = "output" if role == "assistant" else "input"
    kind = f"{side}_text" if content.type == "text" else content.type
    if not kind.startswith(side):
        raise WireError(f"A message of role '{role}' cannot hold '{content.type}'.", "invalid_value", f"{where}.type")
    if kind == "input_audio" and role == "system":
        raise WireError("A system message is written.", "invalid_value", f"{where}.type")
    if kind.endswith("text"):
        if content.text is None:
            raise WireError(f"{where}.text is missing.", "missing_required_parameter", f"{where}.text")
        return Part(kind, content.text)  # type: ignore[arg-type]
    if content.audio is None and content.transcript is None:
        raise WireError(f"{where}.audio is missing.", "missing_required_parameter", f"{where}.audio")
    sound = from_base64(content.audio or "", f"{where}.audio")
    return Part(kind, content.transcript, bytearray(sound), format, len(sound))  # type: ignore[arg-type]


def as_turn(item: Item) -> Turn | None:
    """What an item means to the model, in one segment: speech if there is any. None for a system message."""
    if item.type == "function_call":
        return Turn("assistant", (ToolCall(item.name, item.arguments),))
    if item.type == "function_call_output":
        return Turn("tool", (Text(item.output),))
    if item.role == "system":
        return None
    spoken = next((part for part in item.parts if part.sound), None)
    if spoken is None:
        return Turn(item.role, (Text(item.written),))
    pcm = Decoder(spoken.format).push(bytes(spoken.sound))
    return Turn(item.role, (Speech(pcm=pcm, text=item.written or None),))


def from_base64(text: str, where: str) -> bytes:
    """The bytes in `text`. Errors: `WireError` naming the field `where`."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise WireError(f"{where} is not valid base64.", "invalid_value", where) from None
