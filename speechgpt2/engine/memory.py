"""What one session has said, as patches: the model's keys and values are only a copy of it, filled in from here.

A memory is an opening and passages, one per turn. It may be edited anywhere: a turn taken back, an answer cut to what
was heard, the oldest turns dropped, another system line. `taken` says how much of it the model's row holds; an edit
moves `taken` back to the first patch that changed, and the rest is fed again. That is all there is to rewinding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from speechgpt2.types import Patches


class Passage:
    """A stretch of patches that belong together: text tokens, and codes `[G, K]` each."""

    def __init__(self, role: Literal["opening", "user", "assistant"], patches: Patches | None = None):
        self.role = role
        self.text: list[int] = []
        self.codes: list[Tensor] = []
        if patches is not None:
            self.extend(patches)

    def __len__(self) -> int:
        return len(self.text)

    def extend(self, patches: Patches) -> None:
        """Add `patches` [1, P]."""
        self.text += patches.text[0].tolist()
        self.codes += patches.codes[0].unbind(0)

    def same_until(self, other: Passage) -> int:
        """How many patches at the beginning are the same in both."""
        count = 0
        for a, b, x, y in zip(self.text, other.text, self.codes, other.codes, strict=False):
            if a != b or not torch.equal(x, y):
                break
            count += 1
        return count


class Memory:
    """One session's passages. `taken`: patches from the start that the model's row holds as they stand here."""

    def __init__(self, opening: Patches):
        self.opening = Passage("opening", opening)
        self.passages: list[Passage] = []
        self.taken = 0

    def __len__(self) -> int:
        return sum(map(len, self._all()))

    def _all(self) -> Iterator[Passage]:
        yield self.opening
        yield from self.passages

    def begin(self, role: Literal["user", "assistant"]) -> Passage:
        """A new passage at the end, empty."""
        self.passages.append(Passage(role))
        return self.passages[-1]

    def reopen(self, patches: Patches) -> None:
        """Another opening."""
        new = Passage("opening", patches)
        if (same := new.same_until(self.opening)) < max(len(new), len(self.opening)):
            self.taken = min(self.taken, same)
        self.opening = new

    def rewrite(self, passage: Passage, patches: Patches) -> None:
        """Another content for `passage`; what came before and what is the same in it need not be fed again."""
        new = Passage(passage.role, patches)
        if (same := new.same_until(passage)) < max(len(new), len(passage)):
            self.taken = min(self.taken, self.start_of(passage) + same)
        passage.text, passage.codes = new.text, new.codes

    def shorten(self, passage: Passage, length: int) -> None:
        """Forget all but the first `length` patches of `passage`."""
        if len(passage) > length:
            self.taken = min(self.taken, self.start_of(passage) + length)
            del passage.text[length:], passage.codes[length:]

    def remove(self, passage: Passage) -> None:
        """Forget a passage."""
        self.shorten(passage, 0)
        self.passages = [other for other in self.passages if other is not passage]

    def start_of(self, passage: Passage) -> int:
        """The position of its first patch."""
        position = 0
        for other in self._all():
            if other is passage:
                return position
            position += len(other)
        raise ValueError("no passage of this memory")

    def trim(self, most: int) -> None:
        """Drop the oldest turns until `most` patches are left, a user's turn together with its answer.

        The opening and the newest passage stay; if that one alone is too long, it loses the oldest of its speech.
        """
        excess = len(self) - most
        if excess <= 0:
            return
        gone = 0
        while excess > 0 and len(self.passages) > 1:
            dropped = self.passages.pop(0)
            excess -= len(dropped)
            gone += len(dropped)
            while len(self.passages) > 1 and self.passages[0].role == "assistant":
                excess -= len(self.passages[0])
                gone += len(self.passages.pop(0))
        if gone:
            self.taken = min(self.taken, len(self.opening))
        if excess > 0 and self.passages:
            self._shed(self.passages[0], excess)

    def _shed(self, passage: Passage, patches: int) -> None:
        """Take `patches` out of a passage, after the token with which its speech begins."""
        head = next(
            (i for i in range(1, len(passage)) if int(passage.codes[i][0, 0]) != int(passage.codes[0][0, 0])), 0
        )
        del passage.text[head : head + patches], passage.codes[head : head + patches]
        self.taken = min(self.taken, self.start_of(passage) + head)

    def next(self, most: int) -> Patches:
        """The next patches to take in, `[1, P]` with P ≤ `most`."""
        text: list[int] = []
        codes: list[Tensor] = []
        skip = self.taken
        for passage in self._all():
            if skip < len(passage):
                text += passage.text[skip : skip + most - len(text)]
                codes += passage.codes[skip : skip + most - len(codes)]
            skip = max(0, skip - len(passage))
            if len(text) == most:
                break
        return Patches(torch.tensor([text], dtype=torch.int64), torch.stack(codes)[None])
