"""A judge that hears English words: pocketsphinx with a grammar, whose wheel carries its acoustic model.

A small recogniser is only reliable where it knows what may be said. The grammar is a word-pair grammar: an utterance
begins, goes on and ends as one of the domain's texts does, but need not be one of them. Whatever it misses in a
model's speech it also misses in the teacher's: a rate means something next to the teacher's rate on the same texts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from speechgpt2.eval.extras import need
from speechgpt2.eval.metrics import resample

RATE = 16_000
_START, _END = "<s>", "</s>"


class Recogniser:
    """Hears texts made of the word pairs of `domain`, which are lists of lower-case words.

    Errors: `UserError` where pocketsphinx is missing.
    """

    def __init__(self, domain: Iterable[Sequence[str]]) -> None:
        sphinx = need("pocketsphinx")
        self._decoder = sphinx.Decoder(samprate=float(RATE), loglevel="FATAL", lm=None)
        spoken = [words for words in domain if words and self.knows(words)]
        if not spoken:
            raise ValueError("a recogniser needs at least one text of words in its dictionary")
        self._decoder.add_fsg("domain", self._decoder.create_fsg("domain", 0, 1, word_pair_arcs(spoken)))
        self._decoder.activate_search("domain")

    def knows(self, words: Sequence[str]) -> bool:
        """Whether every word is in the recogniser's dictionary; a text with another one cannot be judged."""
        return all(self._decoder.lookup_word(word) is not None for word in words)

    def hear(self, pcm: NDArray[np.floating]) -> list[str]:
        """The words heard in `pcm [N]` at 24 kHz; an empty list where the grammar fits nothing."""
        margin = np.zeros(RATE // 4, np.float32)  # the grammar's fillers want a little silence around speech
        wave = np.concatenate([margin, resample(np.asarray(pcm), RATE), margin])
        self._decoder.start_utt()
        self._decoder.process_raw(to_pcm16(wave), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        # A second pronunciation is heard as "the(2)".
        return [re.sub(r"\(\d+\)$", "", word) for word in best.hypstr.split()] if best else []


def to_pcm16(pcm: NDArray[np.floating]) -> bytes:
    """Little-endian 16-bit samples, peaks scaled to half of full scale: the recogniser's features know no gain."""
    peak = max(float(np.abs(pcm).max(initial=0.0)), 1e-6)
    return np.round(pcm / peak * 16_000).astype("<i2").tobytes()


def word_pair_arcs(texts: Iterable[Sequence[str]]) -> list[tuple[int, int, float, str] | tuple[int, int, float]]:
    """The grammar as an automaton: arcs (from, to, probability, word) from state 0 to 1, a state per word just said.

    The same grammar as JSGF rules, one per word, would be unfolded along every path.
    """
    follows: dict[str, set[str]] = defaultdict(set)
    for words in texts:
        for first, second in zip((_START, *words), (*words, _END), strict=True):
            follows[first].add(second)
    state = {_START: 0, _END: 1} | {word: i for i, word in enumerate(sorted(follows.keys() - {_START}), 2)}
    arcs: list[tuple[int, int, float, str] | tuple[int, int, float]] = []
    for first, options in follows.items():
        for second in sorted(options):
            arc = (state[first], state[second], 1.0 / len(options))
            arcs.append(arc if second == _END else (*arc, second))
    return arcs


def errors(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, insertions and deletions between two lists of words (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
