"""The conversation of one session as patches on the host, and how many of them its row of the KV cache holds.

The context leads and the row follows. A turn is added, replaced or removed here; then the row is prefilled again from
the first patch that differs. So an interruption, a deletion and the dropping of old turns are one operation, and
nothing on the device has to be undone: a row rewinds by its position.

    system prompt │ separator turn │ separator turn …
                  └───── span ─────┘          ↑ kv_length        ↑ length                         ↑ capacity
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import concat
from speechgpt2.sessions.entries import PatchBlock
from speechgpt2.types import Patches, Role


@dataclass
class Span:
    """The patches `start … stop` of one turn.

    Attributes:
        number: The turn's number in its session.
        separator: Patches at its start that separate it from the turn before.
        user_spoke: Whether the user spoke: the turn is the user's speech, or a reply that begins with its transcript.
        speech_offset: Patches between the separator and the user's speech.
        rate: Of a reply: seconds of its speech in a second of playback.
        answer: Of a reply: its whole text, also of what was not played.
        text: What was written, or the transcript that came with speech.
    """

    number: int
    role: Role
    start: int
    stop: int
    separator: int
    user_spoke: bool
    speech_offset: int = 0
    rate: float = 1.0
    answer: str = ""
    text: str | None = None

    @property
    def body_start(self) -> int:
        """The patch where the turn begins, after its separator."""
        return self.start + self.separator


class Context:
    """A buffer of patches, allocated once: `[capacity]` tokens and `[capacity, G, K]` codes, with the turns in it.

    Prefill chunks begin where `chunk_starts` says. They depend on the conversation and not on the time of a step, so a
    session's results do not depend on timing.

    Args:
        prompt: The model's prompt layout.
        capacity: Most patches.
        prefill_chunk_size: Most patches of one prefill chunk.
        system_prompt: The system line and a greeting, `[1, P]`. It is never dropped.

    Attributes:
        text: The tokens, `[capacity]`; those from `length` on have no meaning.
        codes: The codes, `[capacity, G, K]`.
        chunk_starts: Where prefill chunks begin, `[capacity]` bool.
        length: Number of patches.
        kv_length: How many of them the row holds.
        system_length: How many of them are the system prompt.
        spans: The turns, in their order.
        forgotten: Numbers of the turns that were dropped because there was little room.
    """

    def __init__(self, prompt: Prompt, capacity: int, prefill_chunk_size: int, system_prompt: Patches):
        c = prompt.config
        self.prompt, self.capacity, self.prefill_chunk_size = prompt, capacity, prefill_chunk_size
        self._reserve = capacity // 4  # patches that are kept free for the next turn and reply
        self._kept = capacity // 2  # patches that stay when old turns are dropped, so that this is rare
        self.text = np.zeros(capacity, np.int64)
        self.codes = np.zeros((capacity, c.patch_frames, c.codebooks), np.int64)
        self.chunk_starts = np.zeros(capacity, bool)
        self.length = self.kv_length = self.system_length = 0
        self.spans: list[Span] = []
        self.forgotten: list[int] = []
        self.set_system_prompt(system_prompt)

    @property
    def pending_patches(self) -> int:
        """Patches that are not prefilled yet."""
        return self.length - self.kv_length

    @property
    def room(self) -> int:
        """Number of patches that still fit."""
        return self.capacity - self.length

    @property
    def speech_depth(self) -> int:
        """Started speech segments minus ended ones. The model generates codes unless this is 0."""
        text, ids = self.text[: self.length], self.prompt.special_ids
        return int(np.count_nonzero(text == ids.speech_start) - np.count_nonzero(text == ids.speech_end))

    @property
    def next_chunk_length(self) -> int:
        """Patches of the next prefill chunk."""
        count = min(self.pending_patches, self.prefill_chunk_size)
        marks = np.flatnonzero(self.chunk_starts[self.kv_length + 1 : self.kv_length + count])
        return int(marks[0]) + 1 if len(marks) else count

    def next_chunk(self) -> Patches:
        """Return the next prefill chunk `[1, P]`. It counts as prefilled from now on."""
        begin = self.kv_length
        self.kv_length += self.next_chunk_length
        return self.patches(begin, self.kv_length)

    def patches(self, start: int, stop: int) -> Patches:
        """Return a copy of some patches, `[1, stop − start]`."""
        text, codes = self.text[start:stop].copy(), self.codes[start:stop].copy()
        return Patches(torch.from_numpy(text)[None], torch.from_numpy(codes)[None])

    def set_system_prompt(self, system_prompt: Patches) -> None:
        """Replace the system line and the greeting.

        Raises:
            UserError: They take more than a fourth of the context.
        """
        count = system_prompt.text.shape[1]
        if count > self._reserve:
            raise UserError(
                f"instructions, tools and greeting take {count} of {self.capacity} patches; they must be shorter"
            )
        if self.length - self.system_length + count > self.capacity - self._reserve:
            self._drop_oldest(self._kept - count + self.system_length)
        change = self._splice(0, self.system_length, system_prompt)
        self.system_length = count
        _shift(self.spans, change)

    def patch_block(self, start: int, stop: int) -> PatchBlock:
        """Return a copy of some patches as they are saved: with the chunks in which they are read."""
        parts = self.text[start:stop], self.codes[start:stop], self.chunk_starts[start:stop]
        return PatchBlock(*(part.copy() for part in parts))

    def restore(self, block: PatchBlock, system_length: int, spans: Sequence[Span]) -> None:
        """Replace everything by saved patches. Those that the row holds already are not read again.

        Raises:
            UserError: They do not fit.
        """
        count = len(block.text)
        if count > self.capacity:
            raise UserError(f"the session's context has {count} patches, and this engine holds {self.capacity}")
        agreed = self.patch_block(0, self.length).common(block)
        self.text[:count], self.codes[:count], self.chunk_starts[:count] = block
        self.length, self.system_length, self.spans = count, system_length, [*spans]
        if agreed < self.kv_length:
            # The next patch is sampled from the hidden state after the last one, so that is read again, in its chunk.
            self.kv_length = int(np.flatnonzero(self.chunk_starts[: max(1, agreed)])[-1])

    def add(
        self,
        number: int,
        role: Role,
        patches: Patches,
        user_spoke: bool = False,
        speech_offset: int = 0,
        text: str | None = None,
    ) -> Span:
        """Add a turn after all others.

        Raises:
            UserError: It is too long for the context.
        """
        self._make_room(patches.text.shape[1])
        separator = _separator(self.prompt, self.spans[-1].role if self.spans else None, role)
        turn = concat(separator, patches)
        span = Span(
            number, role, self.length, self.length, separator.text.shape[1], user_spoke, speech_offset, text=text
        )
        self.spans.append(span)
        self.extend(turn)
        return span

    def extend(self, patches: Patches, prefilled: bool = False) -> None:
        """Add patches to the last turn. `prefilled`: the row has read them already."""
        self._splice(self.length, self.length, patches)
        self.spans[-1].stop = self.length
        if prefilled:
            self.kv_length = self.length

    def reread_last(self) -> None:
        """Prefill the last patch again; what the row has read after it is discarded."""
        self.kv_length = min(self.kv_length, self.length - 1)

    def remove_tail(self, span: Span, count: int) -> None:
        """Remove the last `count` patches of the last turn."""
        self._splice(span.stop - count, span.stop, self.prompt.text_patches([]))
        span.stop -= count

    def replace(self, span: Span, patches: Patches) -> None:
        """Replace a turn by patches that are not longer than it."""
        change = self._splice(span.body_start, span.stop, patches)
        span.stop += change
        _shift(self.spans[self.spans.index(span) + 1 :], change)

    def remove(self, span: Span) -> None:
        """Remove a turn."""
        index = self.spans.index(span)
        after = self.spans[index + 1] if index + 1 < len(self.spans) else None
        before = self.spans[index - 1].role if index else None
        separator = self.prompt.text_patches([]) if after is None else _separator(self.prompt, before, after.role)
        change = self._splice(span.start, span.stop if after is None else after.body_start, separator)
        del self.spans[index]
        if after is not None:
            after.separator, after.start = separator.text.shape[1], span.start
            after.stop += change
            _shift(self.spans[index + 1 :], change)

    def find(self, number: int) -> Span | None:
        """Return the turn of this number, if it is still in the context."""
        return next((span for span in reversed(self.spans) if span.number == number), None)

    def drop_old_turns(self) -> None:
        """Drop the oldest turns if little room is left, but neither the system prompt nor the last exchange.

        A single turn of speech that is too long loses its beginning.
        """
        if self.room >= self._reserve:
            return
        self._drop_oldest(self._kept)
        last = self.spans[-1]
        if self.room < self._reserve and last.role == "user" and last.user_spoke:
            begin, excess = last.body_start + last.speech_offset, self.length - self._kept
            change = self._splice(begin, begin + excess, self.prompt.text_patches([]))
            last.stop += change

    def _make_room(self, count: int) -> None:
        self.drop_old_turns()
        count += _separator(self.prompt, None, "assistant").text.shape[1]  # the longest separator
        limit = self.capacity - self.system_length
        if count > limit:
            raise UserError(f"a turn of {count} patches is too long; {limit} fit beside the system prompt")
        if count > self.room:
            self._drop_oldest(self.capacity - count)
        if count > self.room:  # the last exchange does not fit beside the new turn
            self._splice(self.system_length, self.length, self.prompt.text_patches([]))
            self.forgotten += [span.number for span in self.spans]
            self.spans.clear()

    def _drop_oldest(self, length: int) -> None:
        """Drop exchanges, oldest first, until `length` patches or one exchange are left."""
        count, dropped = 0, 0  # turns and patches
        for index, span in enumerate(self.spans[1:], 1):
            if span.role == "user" and self.length - dropped > length:
                count, dropped = index, span.start - self.system_length
        if not count:
            return
        first = self.spans[count]
        separator = _separator(self.prompt, None, first.role)
        change = self._splice(self.system_length, first.body_start, separator)
        first.start, first.separator = self.system_length, separator.text.shape[1]
        first.stop += change
        self.forgotten += [span.number for span in self.spans[:count]]
        del self.spans[:count]
        _shift(self.spans[1:], change)

    def _splice(self, start: int, stop: int, patches: Patches) -> int:
        """Put `patches` in place of `start … stop`. Returns by how many patches the context has grown."""
        text, codes = patches.text[0].numpy(), patches.codes[0].numpy()
        change = len(text) - (stop - start)
        if self.length + change > self.capacity:
            raise UserError(f"the context holds {self.capacity} patches, and {change} more do not fit")
        text = np.concatenate([text, self.text[stop : self.length]])
        codes = np.concatenate([codes, self.codes[stop : self.length]])
        end = start + len(text)
        common = min(end, self.length) - start
        same = (text[:common] == self.text[start : start + common]) & (
            codes[:common] == self.codes[start : start + common]
        ).all(axis=(1, 2))
        agreed = start + (common if same.all() else int(np.argmin(same)))
        begin = agreed
        if agreed < self.length:
            # Patches have changed. The patch before the first changed one is prefilled again as well, because the next
            # patch is sampled from the hidden state after it.
            begin = max(0, agreed - 1)
            self.kv_length = min(self.kv_length, begin)
        self.text[start:end], self.codes[start:end] = text, codes
        self.chunk_starts[begin:end] = (np.arange(end - begin) % self.prefill_chunk_size) == 0
        self.length = end
        return change


def _separator(prompt: Prompt, before: Role | None, role: Role) -> Patches:
    """Return the patches between two turns. A question or tool result without an answer gets an empty answer."""
    unanswered = before in ("user", "tool")
    if role == "assistant":
        return prompt.text_patches([]) if unanswered else prompt.reply_start()
    return prompt.turn_end(speaking=False) if unanswered else prompt.text_patches([])


def _shift(spans: Iterable[Span], change: int) -> None:
    """Move turns behind a part of the context that has become `change` patches longer."""
    for span in spans:
        span.start += change
        span.stop += change
