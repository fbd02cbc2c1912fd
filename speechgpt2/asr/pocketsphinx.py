"""PocketSphinx, whose wheel carries an English acoustic model and language model; with a grammar where texts are known.

A small recogniser is only reliable where it knows what may be said. The grammar is a word-pair grammar: an utterance
begins, goes on and ends as one of the domain's texts does, but need not be one of them. What the recogniser misses in
a model's speech, it also misses in the teacher's: read an error rate beside the teacher's on the same texts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from speechgpt2.asr.recogniser import RATE, TimedWord, Transcription, check_language, to_features_rate
from speechgpt2.extras import require

_START, _END = "<s>", "</s>"
_STEPS = 100  # frames per second
_SILENCE = re.compile(r"^(<.*>|\[.*\])$")


class PocketSphinx:
    """Recognises English: texts made of the word pairs of `domain`, or any text where no domain is given.

    Args:
        domain: Texts as lists of lower-case words.

    Raises:
        UserError: pocketsphinx is not installed.
        ValueError: No text of `domain` consists of words in the dictionary.
    """

    name = "pocketsphinx"
    independent = True
    languages = frozenset({"en"})

    def __init__(self, domain: Iterable[Sequence[str]] | None = None) -> None:
        library = require("pocketsphinx", "eval")
        if domain is None:
            self._decoder = library.Decoder(samprate=float(RATE), loglevel="FATAL")
            return
        self._decoder = library.Decoder(samprate=float(RATE), loglevel="FATAL", lm=None)
        spoken = [words for words in domain if words and self.knows(words)]
        if not spoken:
            raise ValueError("a recogniser needs at least one text of words in its dictionary")
        self._decoder.add_fsg("domain", self._decoder.create_fsg("domain", 0, 1, word_pair_arcs(spoken)))
        self._decoder.activate_search("domain")

    def knows(self, words: Sequence[str]) -> bool:
        """Whether every word is in the dictionary; a text with another one cannot be recognised."""
        return all(self._decoder.lookup_word(word) is not None for word in words)

    def transcribe(self, pcm: NDArray[np.floating], language: str = "en") -> Transcription:
        """Transcribe `pcm` [N] at 24 kHz; the text is empty where the grammar fits nothing."""
        code = check_language(self, language) or "en"
        if not len(pcm):
            return Transcription("", code)
        # The grammar's fillers need a little silence around speech.
        margin = np.zeros(RATE // 4, np.float32)
        wave = np.concatenate([margin, to_features_rate(pcm), margin])
        self._decoder.start_utt()
        self._decoder.process_raw(to_pcm16(wave), full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return Transcription("", code)
        # A second pronunciation of a word is written as "the(2)".
        words = tuple(
            TimedWord(re.sub(r"\(\d+\)$", "", part.word), part.start_frame / _STEPS, (part.end_frame + 1) / _STEPS)
            for part in self._decoder.seg()
            if not _SILENCE.match(part.word)
        )
        offset = len(margin) / RATE
        words = tuple(w._replace(start=max(0.0, w.start - offset), end=max(0.0, w.end - offset)) for w in words)
        return Transcription(" ".join(word.text for word in words), code, words)


def to_pcm16(pcm: NDArray[np.floating]) -> bytes:
    """Little-endian 16-bit samples, peaks scaled to half of full scale: the features do not normalise the level."""
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
