"""Adds fillers, repetitions and self-repairs to written lines, and marks their words."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from speechgpt2.curriculum.texts import read
from speechgpt2.curriculum.texts import words as lexicon_words
from speechgpt2.data.conversations.script import Line, Mark, MarkKind, Script, words_of


@dataclass(frozen=True)
class DisfluencyConfig:
    """Probabilities, per turn of at least `shortest` words."""

    filler: float = 0.25
    repetition: float = 0.12
    repair: float = 0.08
    shortest: int = 4

    @property
    def total(self) -> float:
        """Probability that a turn is changed."""
        return self.filler + self.repetition + self.repair


def add_disfluencies(script: Script, config: DisfluencyConfig, rng: random.Random) -> Script:
    """Add disfluencies to a script. Lines with a style and backchannels do not change."""
    return replace(script, lines=tuple(_with_disfluency(line, script.lang, config, rng) for line in script.lines))


def _with_disfluency(line: Line, lang: str, config: DisfluencyConfig, rng: random.Random) -> Line:
    share = rng.random()
    long = len(words_of(line.text, lang)) >= config.shortest
    if not long or line.style or line.kind != "turn" or share >= config.total:
        return line
    texts, nouns = read("disfluencies")[lang], _nouns(line.text, lang)
    if share < config.filler:
        return _insert(line, lang, "filler", rng.choice(_phrases(line.text)), rng.choice(texts["fillers"]))
    if share < config.filler + config.repair and nouns:
        wrong, at = rng.choice(lexicon_words(lang, "nouns")), rng.choice(nouns)
        return _insert(line, lang, "repair", at, f"{wrong}{texts['comma']}{rng.choice(texts['repairs'])}")
    return _insert(line, lang, "repetition", 0, words_of(line.text, lang)[0])


def _insert(line: Line, lang: str, kind: MarkKind, at: int, words: str) -> Line:
    """Insert `words` at character `at`, and mark them."""
    texts, before, after = read("disfluencies")[lang], line.text[:at], line.text[at:]
    if lang == "en" and not before:
        words = words[0].upper() + words[1:]
        if words_of(after, lang)[0].lower() in texts["small_words"].split():
            after = after[0].lower() + after[1:]
    start = len(words_of(before, lang))
    mark = Mark(kind, start, start + len(words_of(words, lang)))
    return replace(line, text=f"{before}{words}{texts['comma']}{after}", marks=(mark,))


def _phrases(text: str) -> list[int]:
    """Return where phrases begin."""
    return [0, *(match.end() for match in re.finditer(r"[,;，；]\s*(?=\S)", text))]


def _nouns(text: str, lang: str) -> list[int]:
    """Return where nouns of the lexicon begin."""
    nouns = lexicon_words(lang, "nouns")
    if lang == "zh":
        nouns = tuple(sorted((noun for noun in nouns if len(noun) > 1), key=len))
    edge = "" if lang == "zh" else r"\b"
    return [match.start() for match in re.finditer(rf"{edge}(?:{'|'.join(map(re.escape, nouns))}){edge}", text)]
