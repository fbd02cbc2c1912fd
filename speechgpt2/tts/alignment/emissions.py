"""The interface of emission models: from audio and text to the probability of every token at every step.

An `EmissionModel` gets the text as well as the audio. Some models have a fixed vocabulary, others make a vocabulary of
the text (synthesis_aligner.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class TokenSpan(NamedTuple):
    """A word, a character or a phone: tokens `first` … `last` − 1 of the text."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Emissions:
    """Probabilities of the tokens of a text over time.

    Attributes:
        log_probs: `[T, V]`, natural logarithms.
        seconds: of one step; step t begins at `start` + t · `seconds`.
        tokens: `[L]` of the text; `words` and `phones` are spans of them.
        words: spans of tokens.
        phones: spans of tokens.
        blank: the token that stands for no token.
        contiguous: whether no blank may stand within a word. CTC models need a blank there, between equal tokens.
        start: seconds of the first step.
    """

    log_probs: np.ndarray
    seconds: float
    tokens: Sequence[int]
    words: tuple[TokenSpan, ...]
    phones: tuple[TokenSpan, ...] = ()
    blank: int = 0
    contiguous: bool = False
    start: float = 0.0


class EmissionModel(Protocol):
    """Estimates emissions of `pcm [N]` (24 kHz) for a text in a language ("en", "zh")."""

    @property
    def id(self) -> str:
        """Name and version: models with equal ids give equal emissions."""
        ...

    def __call__(self, pcm: np.ndarray, text: str, lang: str) -> Emissions:
        """Estimate the emissions.

        Raises:
            Unalignable: the model has no tokens for the text.
            UserError: the model cannot be used.
        """
        ...
