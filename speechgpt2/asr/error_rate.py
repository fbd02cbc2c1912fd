"""Word and character error rates: edit distance over the length of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechgpt2.asr.text import normalise

NAMES = {"en": "WER", "zh": "CER"}


def error_name(language: str) -> str:
    """Return what the error rate of a language is called."""
    return NAMES.get(language, "errors")


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Count the substitutions, insertions and deletions between two sequences (Levenshtein)."""
    row = np.arange(len(hypothesis) + 1)
    for i, unit in enumerate(reference, 1):
        changed = row[:-1] + np.array([unit != other for other in hypothesis], dtype=int)
        best = np.concatenate([[i], np.minimum(row[1:] + 1, changed)])
        # An insertion costs one more than its left neighbour, which a running minimum propagates.
        steps = np.arange(len(hypothesis) + 1)
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


@dataclass(frozen=True)
class ErrorCount:
    """Errors of several utterances in one language.

    Attributes:
        errors: Substitutions, insertions and deletions.
        length: Units of the references: words in English, characters in Mandarin.
        exact: Utterances without any error.
        utterances: How many utterances were compared.
    """

    errors: int
    length: int
    exact: int
    utterances: int

    @property
    def rate(self) -> float:
        """Errors over the references' length; above 1 where much is inserted, nan without a reference."""
        return self.errors / self.length if self.length else float("nan")

    @property
    def exact_rate(self) -> float:
        """The share of utterances without any error."""
        return self.exact / self.utterances if self.utterances else float("nan")


def count_errors(references: Sequence[str], hypotheses: Sequence[str], language: str) -> ErrorCount:
    """Compare texts after normalisation, pair by pair.

    Raises:
        UserError: A library of the extra `asr` is not installed.
    """
    errors = length = exact = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        spoken, recognised = normalise(reference, language), normalise(hypothesis, language)
        errors += edit_distance(spoken, recognised)
        length += len(spoken)
        exact += spoken == recognised
    return ErrorCount(errors, length, exact, len(references))
