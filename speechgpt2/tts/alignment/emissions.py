"""The interface of emission models: from audio and text to the probability of every token at every step.

An `EmissionModel` gets the text besides the audio, because some models derive their vocabulary from the text
(synthesis_aligner.py); others have a fixed one.
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
        seconds: duration of a step; step t begins at `start` + t · `seconds`.
        tokens: the tokens `[L]` of the text.
        words: the words, as spans of tokens.
        phones: the phones, as spans of tokens.
        blank: the token that stands for no token.
        contiguous: whether blanks are forbidden within words. A CTC model needs blanks there, between equal tokens.
        start: seconds at which the first step begins.
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
