"""What one session's model has been told, as patches on the host, and how far its row has taken them in.

The context is the truth, the row follows it: a turn is added, replaced or removed here, and whatever of the row no
longer agrees is taken in anew, from the first patch that differs. So an interruption, a deletion and the forgetting of
old turns are one operation, and nothing on the device has to be undone: a row rewinds by its position.

    opening │ joint turn │ joint turn │ joint turn …         `joint`: what parts a turn from the one before it
            └── span ────┘                    ↑ taken        ↑ length                             ↑ capacity
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt, concat
from speechgpt2.types import Patches, Role

RESERVE = 4  # a fourth of the capacity is kept for what comes next
KEEP = 2  # half of it is left when turns are forgotten, so that it happens rarely


@dataclass
class Span:
    """The patches `start … stop` of one turn; the first `joint` part it from the one before. `spoken`: the user's
    speech, or a reply that begins with a transcript of it. `head`: patches before a user's speech itself.
    """

    number: int
    role: Role
    start: int
    stop: int
    joint: int
    spoken: bool
    head: int = 0

    @property
    def body(self) -> int:
        """Where the turn itself begins."""
        return self.start + self.joint


class Context:
    """Room for `capacity` patches, `[capacity]` tokens and `[capacity, G, K]` codes, allocated once.

    `starts` marks where a new piece of reading begins, so that pieces follow from what was said, not from when.
    """

    def __init__(self, prompt: Prompt, capacity: int, piece: int, opening: Patches):
        c = prompt.config
        self.prompt, self.capacity, self.piece = prompt, capacity, piece
        self.text = np.zeros(capacity, np.int64)
        self.codes = np.zeros((capacity, c.patch_frames, c.codebooks), np.int64)
        self.starts = np.zeros(capacity, bool)
        self.length = self.taken = self.opening = 0
        self.spans: list[Span] = []
        self.open_with(opening)

    # reading

    @property
    def waiting(self) -> int:
        """Patches that the row has not taken in."""
        return self.length - self.taken

    @property
    def room(self) -> int:
        """Patches that still fit."""
        return self.capacity - self.length

    @property
    def ahead(self) -> int:
        """Patches of the next piece."""
        count = min(self.waiting, self.piece)
        marks = np.flatnonzero(self.starts[self.taken + 1 : self.taken + count])
        return int(marks[0]) + 1 if len(marks) else count

    def take(self) -> Patches:
        """The next piece, `[1, P]`, which the row takes in now."""
        begin = self.taken
        self.taken += self.ahead
        return self.slice(begin, self.taken)

    def slice(self, start: int, stop: int) -> Patches:
        """A copy of some patches, `[1, stop − start]`."""
        text, codes = self.text[start:stop].copy(), self.codes[start:stop].copy()
        return Patches(torch.from_numpy(text)[None], torch.from_numpy(codes)[None])

    # writing

    def open_with(self, opening: Patches) -> None:
        """Replace the system line and the greeting."""
        count = opening.text.shape[1]
        if count > self.capacity // RESERVE:
            raise UserError(
                f"instructions, tools and greeting take {count} of {self.capacity} patches; they must be shorter"
            )
        if self.length - self.opening + count > self.capacity - self.capacity // RESERVE:
            self._drop_oldest(self.capacity // KEEP - count + self.opening)
        change = self._splice(0, self.opening, opening)
        self.opening = count
        self._shift(0, change)

    def add(self, number: int, role: Role, patches: Patches, spoken: bool = False, head: int = 0) -> Span:
        """A turn after all others. Errors: `UserError` if it is too long to be remembered."""
        self._make_room(patches.text.shape[1])
        joint = self._joint(self.spans[-1].role if self.spans else None, role)
        whole = concat(joint, patches)
        span = Span(number, role, self.length, self.length, joint.text.shape[1], spoken, head)
        self.spans.append(span)
        self.extend(whole)
        return span

    def extend(self, patches: Patches, taken: bool = False) -> None:
        """More of the last turn; `taken`: the row has it already. A single patch is a piece of its own."""
        self._splice(self.length, self.length, patches)
        self.spans[-1].stop = self.length
        if taken:
            self.taken = self.length

    def cut_end(self, span: Span, count: int) -> None:
        """Take back the last `count` patches of the last turn."""
        self._splice(span.stop - count, span.stop, self.prompt.text_patches([]))
        span.stop -= count

    def replace(self, span: Span, patches: Patches) -> None:
        """Another text for a turn, no longer than the one it had."""
        change = self._splice(span.body, span.stop, patches)
        span.stop += change
        self._shift(self.spans.index(span) + 1, change)

    def remove(self, span: Span) -> None:
        """The turn was never said."""
        index = self.spans.index(span)
        after = self.spans[index + 1] if index + 1 < len(self.spans) else None
        before = self.spans[index - 1].role if index else None
        new = self.prompt.text_patches([]) if after is None else self._joint(before, after.role)
        change = self._splice(span.start, span.stop if after is None else after.body, new)
        del self.spans[index]
        if after is not None:
            after.joint, after.start = new.text.shape[1], span.start
            after.stop += change
            self._shift(index + 1, change)

    def find(self, number: int) -> Span | None:
        """The turn of this number, if it is still known."""
        return next((span for span in reversed(self.spans) if span.number == number), None)

    def tidy(self) -> None:
        """Forget the oldest turns if there is little room left; never the opening, nor the turn that is under way.

        A single turn of speech that is too long loses its beginning.
        """
        if self.length <= self.capacity - self.capacity // RESERVE:
            return
        self._drop_oldest(self.capacity // KEEP)
        last = self.spans[-1]
        too_much = self.length - self.capacity // KEEP
        if self.length > self.capacity - self.capacity // RESERVE and last.role == "user" and last.spoken:
            begin = last.body + last.head
            change = self._splice(begin, begin + too_much, self.prompt.text_patches([]))
            last.stop += change

    def _make_room(self, count: int) -> None:
        self.tidy()
        count += self._joint(None, "assistant").text.shape[1]  # the longest
        if count > self.capacity - self.opening:
            raise UserError(f"a turn of {count} patches is too long, a context holds {self.capacity}")
        if count > self.room:
            self._drop_oldest(self.capacity - count)
        if count > self.room:  # not even one exchange beside it
            self._splice(self.opening, self.length, self.prompt.text_patches([]))
            self.spans.clear()

    def _drop_oldest(self, length: int) -> None:
        """Drop exchanges from the oldest on until only `length` patches are left, or one exchange."""
        count, gone = 0, 0
        for index, span in enumerate(self.spans[1:], 1):
            if span.role == "user" and self.length - gone > length:
                count, gone = index, span.start - self.opening
        if not count:
            return
        first = self.spans[count]
        joint = self._joint(None, first.role)
        change = self._splice(self.opening, first.body, joint)
        first.start, first.joint = self.opening, joint.text.shape[1]
        first.stop += change
        del self.spans[:count]
        self._shift(1, change)

    def _joint(self, before: Role | None, role: Role) -> Patches:
        """What stands between two turns: a question, or a tool's result, without an answer gets an empty one."""
        unanswered = before in ("user", "tool")
        if role == "assistant":
            return self.prompt.text_patches([]) if unanswered else self.prompt.reply_start()
        return self.prompt.turn_end(speaking=False) if unanswered else self.prompt.text_patches([])

    def _shift(self, index: int, change: int) -> None:
        for span in self.spans[index:]:
            span.start += change
            span.stop += change

    def _splice(self, start: int, stop: int, patches: Patches) -> int:
        """Put `patches` in place of `start … stop`; returns by how much the context has grown."""
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
        if agreed < self.length:  # a change, and no more than an addition: the patch before it is read once more, since
            begin = max(0, agreed - 1)  # what comes next is drawn from the state after it
            self.taken = min(self.taken, begin)
        self.text[start:end], self.codes[start:end] = text, codes
        self.starts[begin:end] = (np.arange(end - begin) % self.piece) == 0
        self.length = end
        return change
