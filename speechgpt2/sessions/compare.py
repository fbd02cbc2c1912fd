"""What came of generating a saved reply again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechgpt2.sessions.entries import PatchBlock


@dataclass(frozen=True)
class ReplayedReply:
    """A reply that was generated again.

    Attributes:
        number: Its number in the session.
        status: "same"; "different"; or "unknown": what stands before it is not what stood there, as turns were deleted.
        text: What was said.
        replayed_text: What is said now.
        differs_at: The first patch that differs, from the start of the turn.
    """

    number: int
    status: Literal["same", "different", "unknown"]
    text: str
    replayed_text: str = ""
    differs_at: int | None = None


def first_difference(was: PatchBlock, now: PatchBlock, cut: bool) -> int | None:
    """Return the first patch in which two replies differ; `cut`: only the beginning of the first is known."""
    count = min(len(was.text), len(now.text))
    equal = (was.text[:count] == now.text[:count]) & (was.codes[:count] == now.codes[:count]).all(axis=(1, 2))
    if not equal.all():
        return int(np.argmin(equal))
    return None if len(was.text) == len(now.text) or (cut and count == len(was.text)) else count
