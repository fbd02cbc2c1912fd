"""Random sentences and word lists, as many as needed: grammatical and varied, without digits and abbreviations.

They are texts for the codec's training speech, and for the language model's reading and dictation. They need no
meaning. The grammar is in texts/sentences.yaml.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from speechgpt2.curriculum.numbers import number_to_words
from speechgpt2.curriculum.texts import LANGUAGES, read, words

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(rng: random.Random, lang: str) -> str:
    """Draw one sentence of 1 to about 6 seconds: English ("en") in sentence case, Mandarin ("zh") in hanzi."""
    if lang not in LANGUAGES:
        raise ValueError(f"no sentences for language {lang!r}; there are 'en' and 'zh'")
    grammar = read("sentences")[lang]
    fixed = {slot: rng.choice(words(lang, kind)) for slot, kind in grammar["drawn_once"].items()}
    template = rng.choice(grammar["templates"])
    slots = _ENGLISH if lang == "en" else _MANDARIN

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name in fixed:
            return fixed[name]
        if name == "number":
            return number_to_words(rng.randint(*grammar["numbers"]), lang)
        return slots[name](rng)

    text = _SLOT.sub(fill, template)
    return text[0].upper() + text[1:]


def word_list(rng: random.Random, lang: str, max_words: int = 6) -> str:
    """Draw 1 to `max_words` unrelated words or numbers without grammar, so that none can be guessed from the others."""
    count = rng.randint(1, max_words)
    kinds = ("nouns", "adjectives", "verbs", "places", "times")
    if lang == "en":
        kinds = ("nouns", "nouns", "adjectives", "verbs", "adverbs")
    items = [
        number_to_words(rng.randint(0, 100), lang)
        if rng.random() < 0.2
        else rng.choice(rng.choice([words(lang, kind) for kind in kinds]))
        for _ in range(count)
    ]
    if lang == "zh":
        return rng.choice(("", "，")).join(items) + "。"
    text = rng.choice((" ", ", ")).join(items) + "."
    return text[0].upper() + text[1:]


def _word(lang: str, kind: str) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(words(lang, kind))


def _english_thing(rng: random.Random) -> str:
    """Draw a noun phrase: "the old boat", "Clara's hat"."""
    noun = rng.choice(words("en", "nouns"))
    if rng.random() < 0.5:
        noun = f"{rng.choice(words('en', 'adjectives'))} {noun}"
    owner = rng.choice(words("en", "determiners"))
    if owner == "a" and noun[0] in "aeiou":
        owner = "an"
    if rng.random() < 0.1:
        owner = f"{rng.choice(words('en', 'names'))}'s"
    return f"{owner} {noun}"


def _english_place(rng: random.Random) -> str:
    return f"{rng.choice(words('en', 'prepositions'))} {_english_thing(rng)}"


def _mandarin_thing(rng: random.Random) -> str:
    noun = rng.choice(words("zh", "nouns"))
    return f"{rng.choice(words('zh', 'adjectives'))}的{noun}" if rng.random() < 0.3 else noun


# Slots of the grammar -> functions that draw their text.
_ENGLISH: dict[str, Callable[[random.Random], str]] = {
    "name": _word("en", "names"),
    "adverb": _word("en", "adverbs"),
    "another_verb": _word("en", "verbs"),
    "another_adjective": _word("en", "adjectives"),
    "thing": _english_thing,
    "place": _english_place,
    "word_list": lambda rng: word_list(rng, "en"),
}
_MANDARIN: dict[str, Callable[[random.Random], str]] = {
    "person": _word("zh", "people"),
    "place": _word("zh", "places"),
    "time": _word("zh", "times"),
    "thing": _mandarin_thing,
    "word_list": lambda rng: word_list(rng, "zh"),
}
