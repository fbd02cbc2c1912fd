"""Forced alignment: the times at which the words and phones of a known text are spoken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechgpt2.tts.alignment.emissions import Emissions, TokenSpan
from speechgpt2.tts.alignment.synthesis_aligner import SynthesisAligner
from speechgpt2.tts.alignment.viterbi import AlignedToken, best_path
from speechgpt2.tts.utterance import Alignment, Phone, Word, tones_of


def align_speech(pcm: np.ndarray, text: str, lang: str) -> tuple[Alignment, float]:
    """Align a text with audio, `pcm [N]` at 24 kHz, by the aligner that needs no model.

    Returns:
        The times, and the agreement of audio and text in 0…1 (`align_emissions`).

    Raises:
        Unalignable: the text cannot be read in this language, or it does not fit the audio.
        MissingDependency: espeak-ng is not installed.
    """
    return align_emissions(SynthesisAligner()(pcm, text, lang))


def align_emissions(emissions: Emissions) -> tuple[Alignment, float]:
    """Find the times of words and phones in emissions.

    Returns:
        The times, and the agreement of audio and text: the mean, over the steps of all tokens, of the token's
        probability divided by the step's highest one, in 0…1.

    Raises:
        Unalignable: the text does not fit the emissions.
    """
    words_without_blanks = emissions.words if emissions.contiguous else ()
    inside_words = [index for word in words_without_blanks for index in range(word.first + 1, word.last)]
    path = best_path(emissions.log_probs, emissions.tokens, emissions.blank, inside_words)

    def times(tokens: TokenSpan) -> tuple[float, float]:
        edges = (path[tokens.first].first, path[tokens.last - 1].last)
        start, end = (round(emissions.start + edge * emissions.seconds, 4) for edge in edges)
        return start, end

    words = tuple(Word(word.text, *times(word)) for word in emissions.words)
    phones = tuple(Phone(phone.text, *times(phone)) for phone in emissions.phones)
    return Alignment(words, phones, tones_of(phones)), _agreement(path, emissions)


def _agreement(path: Sequence[AlignedToken], emissions: Emissions) -> float:
    """Mean, over the steps of all tokens, of the token's probability relative to the step's highest one."""
    ratios = [
        emissions.log_probs[a:b, token] - emissions.log_probs[a:b].max(axis=1)
        for (a, b, _), token in zip(path, emissions.tokens)
    ]
    return float(np.exp(np.concatenate(ratios)).mean()) if ratios else 0.0
