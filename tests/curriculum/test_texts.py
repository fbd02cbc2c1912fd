"""The drawn texts are the same for the same seed, to the byte: corpora and the held-out question set depend on it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import pytest

from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum.sentences import sentence, word_list
from speechgpt2.curriculum.skills import SKILLS, draw_exchange, typed_variants
from speechgpt2.data.conversations.disfluency import DisfluencyConfig, add_disfluencies
from speechgpt2.data.conversations.scenes import scenes


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def exchange_lines(lang: str, rng: random.Random) -> Iterable[str]:
    for skill in (None, *(name for name in SKILLS if SKILLS[name].share)):
        for _ in range(100):
            exchange = draw_exchange(rng, lang, skill)
            yield "|".join((exchange.skill, exchange.question, exchange.reply, *exchange.answer_key))
            yield from typed_variants(exchange, rng)


def scene_lines(lang: str, rng: random.Random) -> Iterable[str]:
    for name, scene in scenes(lang).items():
        for _ in range(20):
            yield name
            for line in scene.draw(rng).lines:
                yield f"{line.role}|{line.text}|{line.kind}|{line.tool}"


def disfluent_lines(lang: str, rng: random.Random) -> Iterable[str]:
    often = DisfluencyConfig(filler=0.4, repetition=0.3, repair=0.3, shortest=2)
    for scene in scenes(lang).values():
        for _ in range(5):
            yield from (line.text for line in add_disfluencies(scene.draw(rng), often, rng).lines)


@pytest.mark.parametrize(
    "lang, expected",
    [
        (
            "en",
            {
                "sentences": "e17692a49871af85",
                "word_lists": "fedd7cfa7c9bab07",
                "exchanges": "cb15d6c5d74c93a7",
                "scenes": "8c9ce4748ae47604",
                "disfluencies": "4182cb04c1bcd206",
            },
        ),
        (
            "zh",
            {
                "sentences": "8b010cffdac36075",
                "word_lists": "d781f14818b72a17",
                "exchanges": "1706d1a91c7e2fa8",
                "scenes": "87c8df98c81c207e",
                "disfluencies": "546c5d74bc8e6b39",
            },
        ),
    ],
)
def test_texts_of_a_seed_do_not_change(lang, expected):
    rng = random.Random(f"texts/{lang}")
    drawn = {
        "sentences": digest(sentence(rng, lang) for _ in range(1000)),
        "word_lists": digest(word_list(rng, lang) for _ in range(200)),
        "exchanges": digest(exchange_lines(lang, rng)),
        "scenes": digest(scene_lines(lang, rng)),
        "disfluencies": digest(disfluent_lines(lang, rng)),
    }
    assert drawn == expected


def test_held_out_questions_do_not_change():
    lines = (f"{question.exchange.question}|{question.voice.id}" for question in held_out_questions())
    assert digest(lines) == "ac209deb7d061532"
