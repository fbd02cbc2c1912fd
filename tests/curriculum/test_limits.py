"""What `mini` cannot answer: requests outside of the skills, sounds without words, other languages."""

import random

import pytest

from speechgpt2.curriculum.limits import foreign_sentence, not_understood, unknown_request
from speechgpt2.curriculum.skills import SKILLS, contains_key, draw_exchange, typed_variants


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_unknown_requests_vary_and_are_answered_alike(lang):
    rng = random.Random(0)
    drawn = [unknown_request(rng, lang) for _ in range(200)]
    assert len({exchange.question for exchange in drawn}) > 120
    assert len({exchange.reply for exchange in drawn}) == 1
    assert all(contains_key(exchange, exchange.reply) and "{" not in exchange.question for exchange in drawn)
    assert typed_variants(drawn[0], rng)[0] == drawn[0].question


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("draw", [unknown_request, not_understood])
def test_reply_answers_no_skill(lang, draw):
    rng = random.Random(1)
    reply = draw(rng, lang).reply
    assert not any(contains_key(draw_exchange(rng, lang, skill), reply) for skill in SKILLS for _ in range(20))


def test_foreign_sentences_are_in_eight_languages():
    rng = random.Random(2)
    drawn = {foreign_sentence(rng) for _ in range(600)}
    assert len({language for _, language in drawn}) == 8
    assert len(drawn) == 48
