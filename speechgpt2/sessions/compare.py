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


def first_difference(saved: PatchBlock, replayed: PatchBlock, cut: bool) -> int | None:
    """Return the first patch in which two replies differ; `cut`: only the beginning of the first is known."""
    count = min(len(saved.text), len(replayed.text))
    same_codes = (saved.codes[:count] == replayed.codes[:count]).all(axis=(1, 2))
    equal = (saved.text[:count] == replayed.text[:count]) & same_codes
    if not equal.all():
        return int(np.argmin(equal))
    return None if len(saved.text) == len(replayed.text) or (cut and count == len(saved.text)) else count
