"""What the lines of a saved session say.

    {"type": "header", "id": "sess_…", "model": "mini", …}
    {"type": "settings", …}                         of replies
    {"type": "system", "patches": …}                the system prompt and the greeting
    {"type": "turn", "number": 1, "role": "user", "patches": …}
    {"type": "turn", "number": 2, "role": "assistant", "patches": …, "reply": {…}}
    {"type": "removed", "numbers": [1, 2], "deleted": false}

A later line about the same thing replaces the earlier one. `SavedSession.add` is the whole rule. The lines `session`,
`item` and `item_removed` are the server's, and mean nothing to a model.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.types import Role, ToolCall

VERSION = 1
MadeBy = Literal["engine", "chat"]
LOCAL_OWNER = "anonymous"  # of sessions that were made without an API key


class PatchBlock(NamedTuple):
    """Patches as they stand in a context.

    `text [P]` int64, `codes [P, G, K]` int64, and `chunk_starts [P]` bool: where the chunks begin in which the model
    reads them. Sums in other chunks differ in their last bits.
    """

    text: np.ndarray
    codes: np.ndarray
    chunk_starts: np.ndarray

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.text)

    def same(self, other: PatchBlock) -> bool:
        """Return whether both hold the same patches in the same chunks."""
        return all(np.array_equal(a, b) for a, b in zip(tuple(self), tuple(other), strict=True))

    def common(self, other: PatchBlock) -> int:
        """Return how many patches, from the first on, are the same in the same chunks."""
        count = min(len(self.text), len(other.text))
        a, b = self.part(0, count), other.part(0, count)
        differs = (a.text != b.text) | (a.codes != b.codes).any(axis=(1, 2)) | (a.chunk_starts != b.chunk_starts)
        return int(np.argmax(differs)) if differs.any() else count

    def part(self, start: int, stop: int) -> PatchBlock:
        """Return the patches `start … stop`."""
        return PatchBlock(self.text[start:stop], self.codes[start:stop], self.chunk_starts[start:stop])


def join(blocks: Sequence[PatchBlock]) -> PatchBlock:
    """Return the patches of all `blocks`, of which there is at least one."""
    return PatchBlock(*(np.concatenate(parts) for parts in zip(*map(tuple, blocks), strict=True)))


def no_patches(header: Header) -> PatchBlock:
    """Return a block without patches."""
    codes = np.zeros((0, header.frames, header.codebooks), np.int64)
    return PatchBlock(np.zeros(0, np.int64), codes, np.zeros(0, bool))


def digest(block: PatchBlock) -> str:
    """Return a short hash of patches and chunks."""
    data = block.text.astype("<i8").tobytes() + block.codes.astype("<i8").tobytes() + block.chunk_starts.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


@dataclass(frozen=True)
class Header:
    """The first line.

    Attributes:
        id: The session's id.
        made_by: What wrote it: "engine" (sg2 serve) or "chat" (sg2 chat, Python). Each resumes its own.
        model: The model's name.
        model_fingerprint: Identifies its weights and its prompt.
        codec_fingerprint: Identifies the codes.
        owner: The id of the API key that made it; never the key.
        created_at: Unix time in seconds.
        frames: Frames of a patch (G).
        codebooks: Codes of a frame (K).
        no_speech: The code of a position without speech.
        setup: What else decides the last bits: device, precision, and for an engine slots and context.
        version: Of the format.
    """

    id: str
    made_by: MadeBy
    model: str
    model_fingerprint: str
    codec_fingerprint: str
    owner: str
    created_at: float
    frames: int
    codebooks: int
    no_speech: int
    setup: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True)
class Settings:
    """How replies are generated from now on: a mapping that its maker reads again."""

    values: dict[str, Any]


@dataclass(frozen=True)
class SystemBlock:
    """What the model reads before all turns; `mode`: its modalities, as "s2s"."""

    mode: str
    patches: PatchBlock

    def same(self, other: SystemBlock) -> bool:
        """Return whether both are the same."""
        return self.mode == other.mode and self.patches.same(other.patches)


@dataclass(frozen=True)
class ReplyInfo:
    """How a reply came about.

    Attributes:
        options: What this reply was asked for besides the settings.
        reason: Why it ended: "stop", "length" or "interrupted".
        context: `digest` of all patches before it.
        played: Patches of speech that were played, if it was cut.
        generated: The whole turn as generated, if it was cut.
        answer: Its whole text, if it was cut.
        rate: Seconds of its speech in a second of playback.
    """

    options: dict[str, Any]
    reason: str
    context: str
    played: int | None = None
    generated: PatchBlock | None = None
    answer: str | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class TurnBlock:
    """One turn as it stands in the context.

    Attributes:
        number: Its number in the session.
        role: Who it is from.
        patches: All of its patches.
        separator: Patches at its start that separate it from the turn before.
        speech_offset: Patches between the separator and the user's speech.
        user_spoke: Whether it is the user's speech, or a reply to it that begins with a transcript.
        text: What was written or said, if it is known.
        transcript: What the reply wrote down of the user's speech.
        calls: The tools that it calls.
        at: When it was complete, Unix time in seconds.
        unread: Patches at its end that the model has not read.
        reply: How it came about, if it was generated.
    """

    number: int
    role: Role
    patches: PatchBlock
    separator: int = 0
    speech_offset: int = 0
    user_spoke: bool = False
    text: str | None = None
    transcript: str | None = None
    calls: tuple[ToolCall, ...] = ()
    at: float = 0.0
    unread: int = 0
    reply: ReplyInfo | None = None

    def speech(self, no_speech: int) -> np.ndarray:
        """Return the codes of its speech, `[T, K]`."""
        codes = self.patches.codes
        return codes[codes[:, 0, 0] != no_speech].reshape(-1, codes.shape[2])


@dataclass(frozen=True)
class Removed:
    """Turns that left the context: deleted, or forgotten because it was full."""

    numbers: tuple[int, ...]
    deleted: bool


@dataclass(frozen=True)
class Resumed:
    """Another process resumes the session here, at this Unix time in seconds. It has read the whole context anew."""

    at: float


@dataclass(frozen=True)
class WireSettings:
    """The session's settings as its client sees them."""

    values: dict[str, Any]


@dataclass(frozen=True)
class WireItem:
    """An item as its client sees it, after the item `previous_id`, with the number of its turn."""

    item: dict[str, Any]
    previous_id: str | None = None
    turn: int | None = None


@dataclass(frozen=True)
class WireItemRemoved:
    """The client deleted an item."""

    id: str


Entry = Header | Settings | SystemBlock | TurnBlock | Removed | Resumed | WireSettings | WireItem | WireItemRemoved


class EntryWriter(Protocol):
    """Where a session's entries go: a `SessionFile`, or something that writes one later."""

    def write(self, entry: Entry) -> None:
        """Append an entry; nothing after `close`."""
        ...

    def close(self) -> None:
        """Expect no more entries."""
        ...


@dataclass
class SavedSession:
    """What the lines of a file add up to.

    Attributes:
        header: The first line.
        settings: The latest settings of replies.
        system: The system prompt.
        turns: All turns that were not deleted, by number: also those that the model has forgotten.
        forgotten: Numbers of the turns that it has forgotten.
        wire_settings: The latest settings of the client's session.
        items: The client's items by id, in their order.
        updated_at: When the last turn was complete, Unix time in seconds.
        incomplete: Whether the last line was cut off, so that it does not count.
    """

    header: Header
    settings: dict[str, Any] = field(default_factory=dict)
    system: SystemBlock | None = None
    turns: dict[int, TurnBlock] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    wire_settings: dict[str, Any] | None = None
    items: dict[str, WireItem] = field(default_factory=dict)
    updated_at: float = 0.0
    incomplete: bool = False

    def add(self, entry: Entry) -> None:
        """Apply the next line."""
        match entry:
            case Settings(values):
                self.settings = values
            case SystemBlock():
                self.system = entry
            case TurnBlock():
                self.turns[entry.number] = entry
                self.updated_at = max(self.updated_at, entry.at)
            case Removed(numbers, True):
                self.turns = {number: turn for number, turn in self.turns.items() if number not in numbers}
            case Removed(numbers, False):
                self.forgotten.update(numbers)
            case WireSettings(values):
                self.wire_settings = values
            case WireItem():
                self.items[str(entry.item["id"])] = entry
            case WireItemRemoved(id):
                self.items.pop(id, None)

    @property
    def remembered(self) -> list[TurnBlock]:
        """The turns in the model's context, in their order."""
        return [self.turns[number] for number in sorted(self.turns) if number not in self.forgotten]

    @property
    def last_number(self) -> int:
        """The highest number of a turn so far."""
        items = (item.turn or 0 for item in self.items.values())
        return max([0, *self.turns, *self.forgotten, *items])

    @property
    def context(self) -> PatchBlock:
        """All patches of the context."""
        if self.system is None:
            raise UserError(f"{self.header.id}: has no system prompt, so it cannot be resumed")
        return join([self.system.patches, *(turn.patches for turn in self.remembered)])


# as JSON


def to_dict(entry: Entry, no_speech: int) -> dict[str, Any]:
    """Return an entry as a JSON object."""
    values: dict[str, Any] = {"type": TYPES[type(entry)]}
    for name, value in vars(entry).items():
        if value is not None and value != ():
            values[name] = _plain(value, no_speech)
    return values


def _plain(value: Any, no_speech: int) -> Any:
    match value:
        case PatchBlock():
            return _block_to_dict(value, no_speech)
        case ReplyInfo():
            return {k: _plain(v, no_speech) for k, v in vars(value).items() if v is not None}
        case tuple():
            return [asdict(item) if isinstance(item, ToolCall) else item for item in value]
    return value


def from_dict(values: dict[str, Any], header: Header | None, with_patches: bool = True) -> Entry:
    """Return the entry of a JSON object.

    Args:
        values: The object.
        header: That of the file; None for the first line.
        with_patches: Whether to decode patches, which takes most of the time; otherwise the entry has none.

    Raises:
        KeyError, TypeError, ValueError: It is not an entry.
    """
    values = dict(values)
    kind = KINDS[values.pop("type")]
    if header is None:
        if kind is not Header:
            raise ValueError("the first line must be a header")
        return Header(**values)
    if "patches" in values:
        values["patches"] = _block_from_dict(values["patches"], header) if with_patches else no_patches(header)
    if kind is TurnBlock:
        values["calls"] = tuple(ToolCall(**call) for call in values.get("calls", ()))
        if "reply" in values:
            values["reply"] = _reply_from_dict(values["reply"], header, with_patches)
    if kind is Removed:
        values["numbers"] = tuple(values["numbers"])
    return kind(**values)


def _reply_from_dict(values: dict[str, Any], header: Header, with_patches: bool) -> ReplyInfo:
    generated = values.pop("generated", None)
    decodes = with_patches and generated is not None
    return ReplyInfo(**values, generated=_block_from_dict(generated, header) if decodes else None)


def _block_to_dict(block: PatchBlock, no_speech: int) -> dict[str, Any]:
    """Tokens as numbers; codes of the patches with speech as base64 of int16; the bits of `chunk_starts` as hex."""
    speaks = block.codes[:, 0, 0] != no_speech
    edges = np.flatnonzero(np.diff(np.concatenate([[0], speaks.astype(np.int8), [0]])))
    codes = base64.b64encode(block.codes[speaks].astype("<i2").tobytes()).decode()
    return {
        "text": block.text.tolist(),
        "speech": edges.reshape(-1, 2).tolist(),  # from patch to patch
        "codes": codes,
        "chunks": np.packbits(block.chunk_starts).tobytes().hex(),
    }


def _block_from_dict(values: dict[str, Any], header: Header) -> PatchBlock:
    text = np.array(values["text"], np.int64).reshape(-1)
    speaks = np.zeros(len(text), bool)
    for start, stop in values["speech"]:
        speaks[start:stop] = True
    codes = np.full((len(text), header.frames, header.codebooks), header.no_speech, np.int64)
    flat = np.frombuffer(base64.b64decode(values["codes"], validate=True), "<i2")
    codes[speaks] = flat.reshape(-1, header.frames, header.codebooks)
    if codes.size and not (codes.min() >= 0 and codes.max() <= header.no_speech):
        raise ValueError("a code is out of range")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(values["chunks"]), np.uint8), count=len(text))
    return PatchBlock(text, codes, bits.astype(bool))


TYPES: dict[type[Any], str] = {
    Header: "header",
    Settings: "settings",
    SystemBlock: "system",
    TurnBlock: "turn",
    Removed: "removed",
    Resumed: "resumed",
    WireSettings: "session",
    WireItem: "item",
    WireItemRemoved: "item_removed",
}
KINDS = {name: kind for kind, name in TYPES.items()}
