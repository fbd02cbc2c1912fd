"""Skills: the own reply is correct, others are not, and the held-out question set does not change."""

from __future__ import annotations

import random

import pytest

from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum.numbers import number_to_words, numbers_in
from speechgpt2.curriculum.skills import (
    SKILLS,
    SkillExchange,
    check_skills,
    draw_exchange,
    facts,
    is_correct,
    typed_variants,
)
from speechgpt2.curriculum.texts import LANGUAGES, read
from speechgpt2.errors import UserError
from speechgpt2.tts.voices import HELD_OUT_VOICES

SUM = SkillExchange("sum", "en", "What is eight plus three?", "Eight plus three is eleven.", ("eleven",))
ZH_SUM = SkillExchange("sum", "zh", "八加三等于几？", "八加三等于十一。", ("十一",))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("skill", SKILLS)
def test_own_reply_is_right_and_another_is_not(lang, skill):
    rng = random.Random(f"{lang}/{skill}")
    for _ in range(200):
        exchange, other = draw_exchange(rng, lang, skill), draw_exchange(rng, lang, rng.choice(("name", "thanks")))
        assert is_correct(exchange, exchange.reply)
        assert is_correct(exchange, exchange.reply.upper().rstrip(".。"))
        assert not is_correct(exchange, "")
        if other.skill != skill:
            assert not is_correct(exchange, other.reply)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("skill", ["sum", "difference", "count", "repeat", "fact"])
def test_wrong_number_is_rejected(lang, skill):
    rng = random.Random(0)
    tried = 0
    while tried < 50:
        exchange = draw_exchange(rng, lang, skill)
        numbers = [k for k in exchange.answer_key if numbers_in(k, lang)]
        if not numbers:
            continue
        number = numbers[-1]
        wrong = number_to_words((numbers_in(number, lang)[0] + 30) % 101, lang)
        head, _, tail = exchange.reply.lower().rpartition(number)
        assert not is_correct(exchange, head + wrong + tail), (exchange, wrong)
        tried += 1


def test_digits_and_words_are_equal():
    assert is_correct(SUM, "8 + 3 is 11") and is_correct(SUM, "eleven!") and is_correct(ZH_SUM, "8加3等于11")
    assert numbers_in("twenty-one, twenty one, 21 and one hundred", "en") == [21, 21, 21, 100]
    assert numbers_in("九，十，九十，二十一，一百", "zh") == [9, 10, 90, 21, 100]


def test_operand_is_not_the_result():
    assert not is_correct(SUM, "Eleven plus three is eight.")
    assert not is_correct(ZH_SUM, "八加三等于一。") and not is_correct(ZH_SUM, "八加三等于十。")


def test_repeat_and_count_need_the_whole_sequence():
    repeat = SkillExchange("repeat", "en", "Say apple river.", "Apple river.", ("apple", "river"))
    texts = ("apple, river", "river apple", "apple")
    assert [is_correct(repeat, text) for text in texts] == [True, False, False]
    count = SkillExchange("count", "zh", "从九数到十一。", "九，十，十一。", ("九", "十", "十一"))
    texts = ("9 10 11", "九，十一。", "九，十，十一，十二。")
    assert [is_correct(count, text) for text in texts] == [True, False, False]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_facts_are_many_and_unambiguous(lang):
    asked = [q for fact in facts(lang) for q in fact.questions]
    assert len(facts(lang)) >= 30 and len(asked) == len(set(asked))


def test_typed_variants():
    typed = typed_variants(SUM, random.Random(0))
    assert typed[:2] == ("What is eight plus three?", "What is eight plus three")
    assert "what's eight plus three" in typed and "what is 8 plus 3" in typed
    assert any("+" in t for t in typed)
    asked = SkillExchange("sum", "zh", "帮我算一下，一加二。", "一加二等于三。", ("三",))
    assert "帮我算一下，1加2" in typed_variants(asked, random.Random(0))


def test_held_out_questions_are_fixed_balanced_and_held_out():
    questions = held_out_questions(36, seed=1)
    assert questions == held_out_questions(36, seed=1) != held_out_questions(36, seed=2)
    held_out = {v.speaker for voices in HELD_OUT_VOICES.values() for v in voices}
    assert {t.voice.speaker for t in questions} <= held_out
    for skill in set(SKILLS) - {"chat"}:
        assert [t.exchange.lang for t in questions if t.exchange.skill == skill] == ["en", "zh"] * 2
    assert {t.exchange.skill for t in held_out_questions(12, skills=["chat", "sum"])} == {"chat", "sum"}
    with pytest.raises(UserError, match="juggle"):
        check_skills(["chat", "juggle"])


def test_error_names_unknown_skill_or_language():
    with pytest.raises(ValueError, match="juggle"):
        draw_exchange(random.Random(0), "en", "juggle")
    with pytest.raises(ValueError, match="'fr'"):
        draw_exchange(random.Random(0), "fr")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_everyday_talk_has_wordings_of_its_own(lang):
    topics = [topic[lang] for topic in read("chat").values()]
    wordings = [question for topic in topics for question in topic["questions"]]
    assert len(topics) >= 45 and len(wordings) == len(set(wordings)) >= 3 * len(topics)
    replies = [topic["reply"] for topic in topics]
    for topic in topics:
        asked = SkillExchange("chat", lang, topic["questions"][0], topic["reply"], (topic["key"],))
        assert [reply for reply in replies if is_correct(asked, reply)] == [topic["reply"]]
