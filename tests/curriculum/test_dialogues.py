"""Dialogues: every reply is right by its own judge, wrong ones are not, and the evaluation set stands still."""

from __future__ import annotations

import random

import pytest

from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum.dialogues import SKILLS, Exchange, draw, right, typed_variants
from speechgpt2.curriculum.facts import FACTS
from speechgpt2.curriculum.numbers import spoken, values
from speechgpt2.tts.voices import HELD_OUT_VOICES

SUM = Exchange("sum", "en", "What is eight plus three?", "Eight plus three is eleven.", ("eleven",))
ZH_SUM = Exchange("sum", "zh", "八加三等于几？", "八加三等于十一。", ("十一",))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("skill", SKILLS)
def test_own_reply_is_right_and_another_is_not(lang, skill):
    rng = random.Random(f"{lang}/{skill}")
    for _ in range(200):
        exchange, other = draw(rng, lang, skill), draw(rng, lang, rng.choice(("name", "thanks")))
        assert right(exchange, exchange.reply)
        assert right(exchange, exchange.reply.upper().rstrip(".。"))
        assert not right(exchange, "")
        if other.skill != skill:
            assert not right(exchange, other.reply)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("skill", ["sum", "difference", "count", "repeat", "fact"])
def test_a_wrong_number_is_rejected(lang, skill):
    rng = random.Random(0)
    tried = 0
    while tried < 50:
        exchange = draw(rng, lang, skill)
        numbers = [k for k in exchange.answer_key if values(k, lang)]
        if not numbers:
            continue
        number = numbers[-1]
        wrong = spoken((values(number, lang)[0] + 30) % 101, lang)
        head, _, tail = exchange.reply.lower().rpartition(number)
        assert not right(exchange, head + wrong + tail), (exchange, wrong)
        tried += 1


def test_digits_and_words_are_one():
    assert right(SUM, "8 + 3 is 11") and right(SUM, "eleven!") and right(ZH_SUM, "8加3等于11")
    assert values("twenty-one, twenty one, 21 and one hundred", "en") == [21, 21, 21, 100]
    assert values("九，十，九十，二十一，一百", "zh") == [9, 10, 90, 21, 100]


def test_an_operand_is_no_result():
    assert not right(SUM, "Eleven plus three is eight.")
    assert not right(ZH_SUM, "八加三等于一。") and not right(ZH_SUM, "八加三等于十。")


def test_repeating_and_counting_want_the_whole_sequence():
    repeat = Exchange("repeat", "en", "Say apple river.", "Apple river.", ("apple", "river"))
    assert right(repeat, "apple, river") and not right(repeat, "river apple") and not right(repeat, "apple")
    count = Exchange("count", "zh", "从九数到十一。", "九，十，十一。", ("九", "十", "十一"))
    assert right(count, "9 10 11") and not right(count, "九，十一。") and not right(count, "九，十，十一，十二。")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_facts_are_enough_and_unambiguous(lang):
    questions = [q for fact in FACTS[lang] for q in fact.questions]
    assert len(FACTS[lang]) >= 30 and len(questions) == len(set(questions))


def test_typed_variants():
    typed = typed_variants(SUM, random.Random(0))
    assert typed[:2] == ("What is eight plus three?", "What is eight plus three")
    assert "what's eight plus three" in typed and "what is 8 plus 3" in typed
    assert any("+" in t for t in typed)
    asked = Exchange("sum", "zh", "帮我算一下，一加二。", "一加二等于三。", ("三",))
    assert "帮我算一下，1加2" in typed_variants(asked, random.Random(0))


def test_held_out_questions_are_fixed_balanced_and_held_out():
    trials = held_out_questions(36, seed=1)
    assert trials == held_out_questions(36, seed=1) != held_out_questions(36, seed=2)
    held_out = {v.speaker for voices in HELD_OUT_VOICES.values() for v in voices}
    assert {t.voice.speaker for t in trials} <= held_out
    for skill in SKILLS:
        assert [t.exchange.lang for t in trials if t.exchange.skill == skill] == ["en", "zh"] * 2


def test_unknown_skill_and_language_are_named():
    with pytest.raises(ValueError, match="juggle"):
        draw(random.Random(0), "en", "juggle")
    with pytest.raises(ValueError, match="'fr'"):
        draw(random.Random(0), "fr")
