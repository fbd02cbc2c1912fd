"""Questions that `mini` cannot answer, and its replies: questions outside of its skills, and sounds without words.

They are not skills of the registry, and the evaluation counts them separately (`eval.rejection`).
"""

from __future__ import annotations

import random

from speechgpt2.curriculum.sentences import sentence
from speechgpt2.curriculum.skills import SkillExchange
from speechgpt2.curriculum.texts import read

UNKNOWN, NOT_UNDERSTOOD = "unknown", "not_understood"
_QUESTIONS = 0.6  # share of the unknown requests that are questions; the rest are statements


def unknown_request(rng: random.Random, lang: str) -> SkillExchange:
    """Draw a question or a statement that no skill answers. The reply says that `mini` does not know."""
    texts = read("limits")[UNKNOWN][lang]
    request = sentence(rng, lang)
    if rng.random() < _QUESTIONS:
        slots = {name: rng.choice(values) for name, values in texts["slots"].items()}
        request = rng.choice(texts["questions"]).format(**slots)
    return SkillExchange(UNKNOWN, lang, request, texts["reply"], (texts["key"],))


def not_understood(rng: random.Random, lang: str) -> SkillExchange:
    """Return the reply to a sound without words; the question is empty."""
    texts = read("limits")[NOT_UNDERSTOOD][lang]
    return SkillExchange(NOT_UNDERSTOOD, lang, "", texts["reply"], (texts["key"],))


def foreign_sentence(rng: random.Random) -> tuple[str, str]:
    """Draw a sentence in a language that `mini` does not speak, and the language's code, such as "de"."""
    language, sentences = rng.choice(sorted(read("limits")["foreign"].items()))
    return rng.choice(sentences), language
