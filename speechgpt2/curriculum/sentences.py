"""Endless plain text from a seeded generator: grammatical, varied, free of digits and abbreviations.

It is what the codec learns to carry and what the model learns to read aloud; sense is no aim.
"""

from __future__ import annotations

import random

from speechgpt2.curriculum import lexicon as words
from speechgpt2.curriculum.numbers import english, mandarin


def sentence(rng: random.Random, lang: str) -> str:
    """One sentence, 1 to about 6 seconds when spoken: "en" with sentence case, "zh" in hanzi."""
    if lang == "zh":
        return _mandarin_sentence(rng)
    if lang == "en":
        text = _english_sentence(rng)
        return text[0].upper() + text[1:]
    raise ValueError(f"no sentences for language {lang!r}; there are 'en' and 'zh'")


def word_list(rng: random.Random, lang: str, most: int = 6) -> str:
    """1 to ``most`` unrelated words or numbers, in no grammar: nothing to guess the next word from."""
    count = rng.randint(1, most)
    if lang == "zh":
        groups = (words.ZH_NOUNS, words.ZH_ADJECTIVES, words.ZH_VERBS, words.ZH_PLACES, words.ZH_TIMES)
        number = mandarin
    else:
        groups = (words.NOUNS, words.NOUNS, words.ADJECTIVES, words.VERBS, words.ADVERBS)
        number = english
    items = [
        number(rng.randint(0, 100)) if rng.random() < 0.2 else rng.choice(rng.choice(groups)) for _ in range(count)
    ]
    if lang == "zh":
        return rng.choice(("", "，")).join(items) + "。"
    text = rng.choice((" ", ", ")).join(items) + "."
    return text[0].upper() + text[1:]


def _thing(rng: random.Random) -> str:
    """A noun phrase: "the old boat", "Clara's hat"."""
    noun = rng.choice(words.NOUNS)
    if rng.random() < 0.5:
        noun = f"{rng.choice(words.ADJECTIVES)} {noun}"
    owner = rng.choice(("the", "the", "this", "that", "my", "your", "our", "her", "every", "a"))
    if owner == "a" and noun[0] in "aeiou":
        owner = "an"
    if rng.random() < 0.1:
        owner = f"{rng.choice(words.NAMES)}'s"
    return f"{owner} {noun}"


def _english_sentence(rng: random.Random) -> str:
    def name() -> str:
        return rng.choice(words.NAMES)

    def adverb() -> str:
        return rng.choice(words.ADVERBS)

    def place() -> str:
        return f"{rng.choice(words.PREPOSITIONS)} {_thing(rng)}"

    def number() -> str:
        return english(rng.randint(2, 100))

    past, verb, adjective = rng.choice(words.VERBS_PAST), rng.choice(words.VERBS), rng.choice(words.ADJECTIVES)
    return rng.choice((
        lambda: f"{name()} {past} {_thing(rng)} {place()}.",
        lambda: f"{_thing(rng)} is {adjective}.",
        lambda: f"{_thing(rng)} was {place()}, but {_thing(rng)} was not.",
        lambda: f"did {name()} {verb} {_thing(rng)}?",
        lambda: f"{adverb()}, {name()} and {name()} {past} {_thing(rng)}.",
        lambda: f"I think {_thing(rng)} is too {adjective} for {name()}.",
        lambda: f"please {verb} {_thing(rng)} {adverb()}.",
        lambda: f"where is {_thing(rng)}?",
        lambda: f"we need {number()} of them {place()}.",
        lambda: f"can you {verb} {_thing(rng)}?",
        lambda: f"there are {number()} steps to {_thing(rng)}.",
        lambda: f"{name()} said, {_thing(rng)} looks {adjective}!",
        lambda: f"if you {verb} {_thing(rng)}, I will {rng.choice(words.VERBS)} {_thing(rng)}.",
        lambda: f"{number()}, {number()}, {number()} and {number()}.",
        lambda: f"why is {_thing(rng)} so {adjective}?",
        lambda: f"it was {adjective} and {rng.choice(words.ADJECTIVES)} {place()}.",
        lambda: f"they {past} {_thing(rng)} because it was {adjective}.",
        lambda: word_list(rng, "en"),
    ))()  # fmt: skip


def _mandarin_sentence(rng: random.Random) -> str:
    def who() -> str:
        return rng.choice(words.ZH_PEOPLE)

    def thing() -> str:
        noun = rng.choice(words.ZH_NOUNS)
        return f"{rng.choice(words.ZH_ADJECTIVES)}的{noun}" if rng.random() < 0.3 else noun

    def where() -> str:
        return rng.choice(words.ZH_PLACES)

    def when() -> str:
        return rng.choice(words.ZH_TIMES)

    def number() -> str:
        return mandarin(rng.randint(3, 100))

    verb, adjective = rng.choice(words.ZH_VERBS), rng.choice(words.ZH_ADJECTIVES)
    return rng.choice((
        lambda: f"{who()}{when()}在{where()}{verb}了{thing()}。",
        lambda: f"{when()}{who()}想去{where()}。",
        lambda: f"这个{thing()}很{adjective}。",
        lambda: f"你{verb}{thing()}吗？",
        lambda: f"{who()}和{who()}都{verb}{thing()}。",
        lambda: f"{where()}有{number()}个{thing()}。",
        lambda: f"请你{when()}{verb}{thing()}，好吗？",
        lambda: f"{thing()}在哪儿？{thing()}在{where()}。",
        lambda: f"虽然{thing()}很{adjective}，但是{who()}不{verb}它。",
        lambda: f"{who()}说，{when()}的{thing()}太{adjective}了！",
        lambda: f"{number()}，{number()}，{number()}，{number()}。",
        lambda: f"因为{thing()}{adjective}，所以{who()}{verb}{thing()}。",
        lambda: f"从{where()}到{where()}要走{number()}分钟。",
        lambda: f"为什么{who()}不{verb}{thing()}？",
        lambda: f"{thing()}比{thing()}{adjective}得多。",
        lambda: word_list(rng, "zh"),
    ))()  # fmt: skip
