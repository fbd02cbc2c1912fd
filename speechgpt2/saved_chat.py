"""Saved conversations of `chat`: the log that a `Conversation` keeps of its context, and what a file says of it.

    conversation.save("talk.jsonl")                            # the whole conversation
    conversation = model.load_conversation("talk.jsonl")       # in another process, too

The format is that of `sessions`, with the chunks in which the patches were read. So a loaded conversation reads them in
the same chunks, and says what the other would have said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from speechgpt2 import config
from speechgpt2.conversation import check_same_model, reply_content, to_patches
from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.sessions.compare import ReplayedReply, first_difference
from speechgpt2.sessions.entries import (
    Entry,
    EntryWriter,
    Header,
    PatchBlock,
    ReplyInfo,
    Resumed,
    SavedSession,
    Settings,
    SystemBlock,
    TurnBlock,
    digest,
    join,
)
from speechgpt2.sessions.session_file import read_entries
from speechgpt2.style import NORMAL, Style
from speechgpt2.types import Patches, Role, Tool

if TYPE_CHECKING:
    from speechgpt2.chat import SpeechGPT
    from speechgpt2.chat_conversation import Conversation


@dataclass
class LoggedTurn:
    """A turn, or the system prompt. `pieces`: its patches `[1, P]` in order; for the rest see `TurnBlock`."""

    role: Role
    text: str | None = None
    user_spoke: bool = False
    separator: int = 0
    speech_offset: int = 0
    pieces: list[Patches] = field(default_factory=list)
    at: float = 0.0
    unread: int = 0
    reply: ReplyInfo | None = None

    @property
    def length(self) -> int:
        """Number of patches."""
        return sum(piece.text.shape[1] for piece in self.pieces)


class ConversationLog:
    """The context of a conversation: its patches turn by turn, and the chunks in which the model has read them.

    Attributes:
        turns: The system prompt, then the turns.
        length: Number of patches.
    """

    def __init__(self, prompt: Prompt, system: Patches):
        self._prompt = prompt
        self.turns = [LoggedTurn("system", pieces=[system])]
        self.length = self.turns[0].length
        self._chunks = set[int]()  # where they start

    def start_turn(self, turn: LoggedTurn) -> None:
        """Begin a turn."""
        self.turns.append(turn)

    def append(self, patches: Patches) -> None:
        """Add patches to the last turn."""
        self.turns[-1].pieces.append(patches)
        self.length += patches.text.shape[1]

    def read(self, start: int) -> None:
        """The model reads a chunk, which starts at this patch."""
        self._chunks.add(start)

    def restart_reply(self, start: int, patches: Patches) -> None:
        """Replace what was generated from patch `start` on by `patches`, which are read as one chunk."""
        reply = self.turns[-1]
        kept = start - (self.length - reply.length)
        self._chunks -= set(range(start, self.length))
        reply.pieces, self.length = [_first(concat(*reply.pieces), kept)] if kept else [], start
        self.read(start)
        self.append(patches)

    def end_turn(self, read: int, reason: str | None = None, options: dict[str, Any] | None = None) -> None:
        """The last turn is complete.

        Args:
            read: Patches that the model has read.
            reason: Why the reply ended, if it is one.
            options: What it was asked for besides the settings: the `text` that it read aloud.
        """
        turn = self.turns[-1]
        turn.pieces = [concat(*turn.pieces)]
        turn.at, turn.unread = round(time.time(), 3), self.length - read
        if reason is not None:
            context = digest(join([self._block(i) for i in range(len(self.turns) - 1)]))
            turn.reply = ReplyInfo(options or {}, reason, context)

    def system_block(self) -> SystemBlock:
        """Return the system prompt."""
        return SystemBlock("", self._block(0))

    def turn_blocks(self, first: int = 1) -> list[TurnBlock]:
        """Return the turns from number `first` on."""
        return [self._turn_block(number) for number in range(first, len(self.turns))]

    def _turn_block(self, number: int) -> TurnBlock:
        turn, block = self.turns[number], self._block(number)
        layout = turn.separator, turn.speech_offset, turn.user_spoke
        text, transcript, calls = turn.text, None, ()
        if turn.role == "assistant":
            body = PatchBlock(*(part[turn.separator :] for part in block))
            said = reply_content(self._prompt, to_patches(body), turn.user_spoke)
            text, transcript, calls = (said.text if text is None else text), said.transcript, said.calls  # type: ignore
        return TurnBlock(number, turn.role, block, *layout, text, transcript, calls, turn.at, turn.unread, turn.reply)

    def _block(self, number: int) -> PatchBlock:
        start = sum(turn.length for turn in self.turns[:number])
        patches = concat(*self.turns[number].pieces)
        starts = np.array([start + i in self._chunks for i in range(patches.text.shape[1])], bool)
        return PatchBlock(patches.text[0].cpu().numpy(), patches.codes[0].cpu().numpy(), starts)

    @classmethod
    def from_saved(cls, prompt: Prompt, saved: SavedSession) -> ConversationLog:
        """Return the log of a saved conversation."""
        context = saved.context  # raises if there is no system prompt
        assert saved.system is not None
        log = cls(prompt, to_patches(saved.system.patches))
        for turn in saved.remembered:
            text = turn.text if turn.reply is None else None
            layout = turn.user_spoke, turn.separator, turn.speech_offset
            logged = LoggedTurn(turn.role, text, *layout, [to_patches(turn.patches)], turn.at, turn.unread, turn.reply)
            log.turns.append(logged)
            log.length += logged.length
        log._chunks = set(np.flatnonzero(context.chunk_starts).tolist())
        return log


def _first(patches: Patches, count: int) -> Patches:
    return Patches(patches.text[:, :count], patches.codes[:, :count])


def read_chunks(saved: SavedSession) -> tuple[list[Patches], Patches | None]:
    """Return the context of a saved conversation as the chunks that the model has read, and what it has not read.

    Raises:
        UserError: It has no system prompt.
    """
    block, turns = saved.context, saved.remembered
    read = len(block.text) - (turns[-1].unread if turns else len(block.text))
    edges = [*np.flatnonzero(block.chunk_starts[:read]).tolist(), read]
    chunks = [to_patches(block.part(start, stop)) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return chunks, to_patches(block.part(read, len(block.text))) if read < len(block.text) else None


class ConversationWriter:
    """Saves a conversation while it goes on.

    Args:
        conversation: The conversation.
        writer: Receives the entries.
        saved: The saved conversation to resume; None for a new one.
    """

    def __init__(self, conversation: Conversation, writer: EntryWriter, saved: SavedSession | None = None):
        self._conversation, self._writer = conversation, writer
        self._settings: Entry | None = None if saved is None else Settings(saved.settings)  # as the file has them
        self._turns = 0 if saved is None else len(saved.remembered)  # turns that the file has

    def write_new(self) -> None:
        """Write the complete turns since the last call, and the settings if they have changed."""
        settings = self._conversation.settings_entries()
        if settings[0] != self._settings:
            self._settings = settings[0]
            for entry in settings:
                self._writer.write(entry)
        for turn in self._conversation.log.turn_blocks(self._turns + 1):
            self._writer.write(turn)
            self._turns = turn.number

    def close(self) -> None:
        """Write what is new, and close the file."""
        try:
            self.write_new()
        finally:
            self._writer.close()


def replay(model: SpeechGPT, path: Path) -> Iterator[ReplayedReply]:
    """Yield the replies of a saved conversation, generated again from what stands before each.

    Raises:
        UserError: The file is damaged, or another model made it.
    """
    entries = read_entries(path)
    header = next(entries, None)
    assert isinstance(header, Header)  # it was read before
    check_same_model(header, "chat", model.fingerprints)
    before, conversation = SavedSession(header), None
    for entry in entries:
        if isinstance(entry, (Resumed, Settings)):
            conversation = None
        if isinstance(entry, TurnBlock) and before.system is not None:
            conversation = conversation or model.load_conversation(before)
            if entry.reply is None:
                conversation.append_saved(entry)
            else:
                result = _generate_again(conversation, entry, entry.reply)
                if result.status != "same" or entry.reply.reason == "interrupted":
                    conversation = None  # what it says from here on would follow another reply
                yield result
        before.add(entry)


def _generate_again(conversation: Conversation, turn: TurnBlock, reply_info: ReplyInfo) -> ReplayedReply:
    said, cut = turn.text or "", reply_info.reason == "interrupted"
    for _ in conversation.reply(turn.user_spoke, reply_info.options.get("text")):
        pass
    replayed_turn = conversation.log.turn_blocks(len(conversation.log.turns) - 1)[0]
    if replayed_turn.reply is None or replayed_turn.reply.context != reply_info.context:
        return ReplayedReply(turn.number, "unknown", said)
    saved_turn = turn.patches.part(0, len(turn.patches.text) - (turn.unread if cut else 0))
    position = first_difference(saved_turn, replayed_turn.patches, cut)
    status: Literal["same", "different"] = "same" if position is None else "different"
    return ReplayedReply(turn.number, status, said, replayed_turn.text or "", position)


# settings as JSON


@dataclass(frozen=True)
class ChatSettings:
    """The settings of a conversation."""

    speak: bool
    max_patches: int
    tools: tuple[Tool, ...]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    style: Style = NORMAL
    speed: float = 1.0

    @classmethod
    def from_sampling(
        cls,
        speak: bool,
        max_patches: int,
        tools: Sequence[Tool],
        sampling: SamplingParams,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> ChatSettings:
        """Return the settings of a conversation; `style`: the one that lasts now."""
        temperature, top_k, top_p, seed = (leaf[0].item() for leaf in sampling)
        return cls(speak, max_patches, tuple(tools), temperature, int(top_k), top_p, int(seed), style, speed)

    def entry(self) -> Settings:
        """Return the settings as an entry of a file."""
        return Settings(config.to_dict(self))

    @classmethod
    def from_saved(cls, saved: SavedSession) -> ChatSettings:
        """Return the settings of a saved conversation. Raises `UserError` if it has none."""
        try:
            tools = tuple(Tool(**tool) for tool in saved.settings["tools"])
            style = config.from_dict(Style, saved.settings["style"])
            return cls(**{**saved.settings, "tools": tools, "style": style})
        except (KeyError, TypeError):
            raise UserError(f"session {saved.header.id} has no settings, so it cannot be resumed") from None

    def sampling(self, device: torch.device) -> SamplingParams:
        """Return the sampling parameters."""
        return SamplingParams.for_batch(1, self.temperature, self.top_k, self.top_p, self.seed, device)
