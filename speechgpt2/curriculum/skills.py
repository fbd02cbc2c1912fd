"""The registry of skills: the questions that `mini` can answer, its replies, and which replies are correct.

To add a skill, write its wordings into texts/questions.yaml, write a function that draws an exchange, and add a line to
`SKILLS`. A skill with one fixed reply needs no function: its reply is in the YAML file (`fixed_reply`).

Questions have many wordings, replies hardly any, so that a small model can learn them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from speechgpt2.curriculum.numbers import number_to_words, numbers_in, tokens
from speechgpt2.curriculum.texts import LANGUAGES, read, words
from speechgpt2.errors import UserError

ASSISTANT_NAMES = {"en": "Mini", "zh": "小迷"}

_LARGEST = 20  # operand or result of sums and differences, and the end of counting
_TOTALS_AND_PARTS = [(total, part) for total in range(_LARGEST + 1) for part in range(total + 1)]
_SIGNS = {"en": {"sum": " plus ", "difference": " minus "}, "zh": {"sum": "加", "difference": "减"}}


@dataclass(frozen=True)
class SkillExchange:
    """A question of the user and the assistant's reply.

    Attributes:
        skill: a key of `SKILLS`.
        lang: "en" or "zh".
        question: the spoken text.
        reply: the spoken text.
        answer_key: the texts that a correct reply contains.
    """

    skill: str
    lang: str
    question: str
    reply: str
    answer_key: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A fact: the questions for it, the reply, and the texts that a correct reply contains."""

    questions: tuple[str, ...]
    reply: str
    keys: tuple[str, ...]


@cache
def facts(lang: str) -> tuple[Fact, ...]:
    """Return the facts of a language, from texts/facts.yaml."""
    result = []
    for topic in read("facts")[lang]:
        for slots in topic["answers"]:
            reply = topic["reply"].format(*slots)
            questions = tuple(question.format(*slots) for question in topic["questions"])
            result.append(Fact(questions, _capitalised(reply), (topic.get("key", "{1}").format(*slots),)))
    return tuple(result)


def arithmetic(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw a sum or a difference of numbers up to 20."""
    total, part = rng.choice(_TOTALS_AND_PARTS)
    a, b, result = (part, total - part, total) if skill == "sum" else (total, part, total - part)
    slots = {"a": number_to_words(a, lang), "b": number_to_words(b, lang)}
    answer = number_to_words(result, lang)
    reply = slots["a"] + _SIGNS[lang][skill] + slots["b"] + (f"等于{answer}。" if lang == "zh" else f" is {answer}.")
    return SkillExchange(skill, lang, _question(rng, skill, lang, **slots), _capitalised(reply), (answer,))


def repeat(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw 1–4 words to repeat. Two numbers never follow one another: they would sound like one."""
    items: list[str] = []
    number_before = False
    for _ in range(rng.randint(1, 4)):
        is_number = not number_before and rng.random() < 0.2
        items.append(number_to_words(rng.randint(0, 100), lang) if is_number else rng.choice(_repeatable(lang)))
        number_before = is_number
    text = ("" if lang == "zh" else " ").join(items)
    reply = f"{text}。" if lang == "zh" else f"{_capitalised(text)}."
    return SkillExchange(skill, lang, _question(rng, skill, lang, a=text), reply, tuple(items))


def count(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw at most ten numbers to count upwards; "count to five" starts at one."""
    first = rng.choice((None, rng.randint(0, _LARGEST - 2)))
    last = rng.randint(2, 10) if first is None else rng.randint(first + 1, min(first + 9, _LARGEST))
    numbers = [number_to_words(n, lang) for n in range(1 if first is None else first, last + 1)]
    if first is None:
        question = _question(rng, "count_to", lang, b=numbers[-1])
    else:
        question = _question(rng, "count", lang, a=numbers[0], b=numbers[-1])
    reply = f"{'，'.join(numbers)}。" if lang == "zh" else f"{', '.join(numbers)}."
    return SkillExchange(skill, lang, question, _capitalised(reply), tuple(numbers))


def fact(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw a fact of facts.yaml."""
    chosen = rng.choice(facts(lang))
    return SkillExchange(skill, lang, rng.choice(chosen.questions), chosen.reply, chosen.keys)


def chat(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw a piece of everyday talk from chat.yaml."""
    topic = read("chat")[rng.choice(list(read("chat")))][lang]
    return SkillExchange(skill, lang, rng.choice(topic["questions"]), topic["reply"], (topic["key"],))


def fixed_reply(rng: random.Random, lang: str, skill: str) -> SkillExchange:
    """Draw a question whose reply is always the same; both are in questions.yaml."""
    texts = read("questions")[skill][lang]
    return SkillExchange(skill, lang, _question(rng, skill, lang), texts["reply"], (texts["key"],))


def contains_key(exchange: SkillExchange, text: str) -> bool:
    """Whether the text contains the answer key. A number must be the text's last one: an operand does not count."""
    lang = exchange.lang

    def contains(key: str) -> bool:
        if numbers := numbers_in(key, lang):
            return numbers_in(text, lang)[-1:] == numbers
        return _contains(tokens(text, lang), tokens(key, lang))

    return all(map(contains, exchange.answer_key))


def equals_reply(exchange: SkillExchange, text: str) -> bool:
    """Whether the text has exactly the words of the reply."""
    return tokens(text, exchange.lang) == tokens(exchange.reply, exchange.lang)


def equals_numbers(exchange: SkillExchange, text: str) -> bool:
    """Whether the text has exactly the numbers of the reply, in the same order; other words do not matter."""
    lang = exchange.lang
    numbers = [token for token in tokens(text, lang) if token in _number_tokens(lang)]
    return numbers == tokens(exchange.reply, lang)


def typed_numbers(exchange: SkillExchange, text: str, rng: random.Random) -> list[str]:
    """Return the question with digits."""
    return [_with_digits(text.lower(), exchange.lang)]


def typed_arithmetic(exchange: SkillExchange, text: str, rng: random.Random) -> list[str]:
    """Return the question with digits, and as a formula."""
    a, b = numbers_in(exchange.reply, exchange.lang)[:2]
    sign = "+" if exchange.skill == "sum" else "-"
    formula = rng.choice((f"{a} {sign} {b}", f"{a}{sign}{b}", f"{a}{sign}{b}=?", f"{a} {sign} {b} = ?"))
    return [*typed_numbers(exchange, text, rng), formula]


@dataclass(frozen=True)
class Skill:
    """A skill of the registry.

    Attributes:
        share: probability of the skill in a draw, per cent; 0 if it is drawn by name only.
        draw: draws an exchange from (rng, lang, skill).
        is_correct: whether a text is a correct reply, from (exchange, text).
        typed: returns further ways to type a question, from (exchange, question without its mark, rng).
    """

    share: float
    draw: Callable[[random.Random, str, str], SkillExchange]
    is_correct: Callable[[SkillExchange, str], bool] = contains_key
    typed: Callable[[SkillExchange, str, random.Random], list[str]] = lambda exchange, text, rng: []


SKILLS: dict[str, Skill] = {
    "sum": Skill(14, arithmetic, typed=typed_arithmetic),
    "difference": Skill(20, arithmetic, typed=typed_arithmetic),
    "repeat": Skill(26, repeat, equals_reply),
    "fact": Skill(15, fact),
    "count": Skill(9, count, equals_numbers, typed_numbers),
    "greeting": Skill(4, fixed_reply),
    "name": Skill(4, fixed_reply),
    "thanks": Skill(4, fixed_reply),
    "goodbye": Skill(4, fixed_reply),
    "chat": Skill(0, chat),
}


def check_skills(names: Iterable[str]) -> None:
    """Raise `UserError` if a name is not a skill."""
    for name in names:
        if name not in SKILLS:
            raise UserError(f"no skill {name!r}; there are {', '.join(SKILLS)}")


def draw_exchange(rng: random.Random, lang: str, skill: str | None = None) -> SkillExchange:
    """Draw an exchange.

    Args:
        rng: the generator; the same state gives the same exchange.
        lang: "en" or "zh".
        skill: a key of `SKILLS`; None draws one by their shares.

    Raises:
        ValueError: an unknown language or skill.
    """
    if lang not in LANGUAGES:
        raise ValueError(f"no exchanges in language {lang!r}; there are 'en' and 'zh'")
    if skill is None:
        skill = rng.choices(list(SKILLS), weights=[entry.share for entry in SKILLS.values()])[0]
    check_skills([skill])
    return SKILLS[skill].draw(rng, lang, skill)


def is_correct(exchange: SkillExchange, text: str) -> bool:
    """Whether `text` answers the question. Case and punctuation do not matter, nor digits or words for numbers."""
    return SKILLS[exchange.skill].is_correct(exchange, text)


def typed_variants(exchange: SkillExchange, rng: random.Random) -> tuple[str, ...]:
    """Return 2–5 different ways to type the question; the carefully written one is first."""
    question = exchange.question
    without_mark = re.sub(r"[?？.。!！]$", "", question)
    variants = [question, without_mark, without_mark.lower()]
    if exchange.lang == "en":
        variants.append(without_mark.replace("What is", "what's").lower())
    if exchange.skill in SKILLS:
        variants += SKILLS[exchange.skill].typed(exchange, without_mark, rng)
    return tuple(dict.fromkeys(variants))


def _question(rng: random.Random, kind: str, lang: str, **slots: str) -> str:
    return _capitalised(rng.choice(read("questions")[kind][lang]["questions"]).format(**slots))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


@cache
def _repeatable(lang: str) -> list[str]:
    kinds = ("nouns", "adjectives", "verbs", *(("places",) if lang == "zh" else ()))
    return sorted({word for kind in kinds for word in words(lang, kind)})


def _with_digits(text: str, lang: str) -> str:
    """Write the number words from 0 to 20 as digits."""
    for n in range(_LARGEST, -1, -1):
        word = number_to_words(n, lang)
        # 一下 means "a moment" and is not a number.
        text = re.sub(rf"{word}(?!下)" if lang == "zh" else rf"\b{word}\b", str(n), text)
    return text


@cache
def _number_tokens(lang: str) -> frozenset[str]:
    return frozenset(token for n in range(101) for token in tokens(number_to_words(n, lang), lang))


def _contains(text: list[str], key: list[str]) -> bool:
    """Whether the tokens of `key` are consecutive tokens of `text`."""
    return any(text[i : i + len(key)] == key for i in range(len(text) - len(key) + 1))
