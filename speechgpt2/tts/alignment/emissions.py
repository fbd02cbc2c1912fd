"""What an aligner listens with: a function from sound and text to the probability of every token at every step.

`Emitter` is the interface. It has the text as well as the sound, since some models have a fixed vocabulary to spell it
in, while others make their vocabulary from it (rehearsal.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Part(NamedTuple):
    """A word, a character or a phone: tokens `first` … `last` − 1 of the text."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Emissions:
    """What was heard of a text.

    log_probs   [T, V], natural logarithms
    seconds     of one step; step t covers `start` + t · `seconds` and what follows
    tokens      [L] of the text, which `words` and `phones` are parts of
    joined      whether there is no blank within a word; CTC models need it there, between equal tokens at least
    """

    log_probs: np.ndarray
    seconds: float
    tokens: Sequence[int]
    words: tuple[Part, ...]
    phones: tuple[Part, ...] = ()
    blank: int = 0
    joined: bool = False
    start: float = 0.0


class Emitter(Protocol):
    """Listens to `pcm [N]` (24 kHz) for a text in a language ("en", "zh")."""

    @property
    def id(self) -> str:
        """Name and version: two emitters with equal ids give equal emissions."""
        ...

    def __call__(self, pcm: np.ndarray, text: str, lang: str) -> Emissions:
        """Errors: `Unalignable` for a text that it cannot spell; `UserError` if it cannot work at all."""
        ...
