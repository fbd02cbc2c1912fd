"""Short exchanges between a user and the assistant, drawn from a seeded generator, in English and Mandarin.

Questions vary in wording, replies hardly: a small model has to learn them. Every exchange knows what
a right answer must contain, so that free-running output can be judged (`right`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from speechgpt2.curriculum import lexicon
from speechgpt2.curriculum.facts import FACTS
from speechgpt2.curriculum.numbers import spoken, tokens, values

ASSISTANT_NAMES = {"en": "Mini", "zh": "小迷"}

# Share of each skill in a draw, per cent.
SKILLS: dict[str, float] = {
    "sum": 14, "difference": 20, "repeat": 26, "fact": 15, "count": 9,
    "greeting": 4, "name": 4, "thanks": 4, "goodbye": 4,
}  # fmt: skip

_LARGEST = 20  # operand or result of sums and differences, and the end of counting
_TOTALS_AND_PARTS = [(total, part) for total in range(_LARGEST + 1) for part in range(total + 1)]
_ASKS: dict[tuple[str, str], tuple[str, ...]] = {
    ("sum", "en"): (
        "What is {a} plus {b}?", "What's {a} plus {b}?", "How much is {a} plus {b}?", "{a} plus {b}?",
        "Can you add {a} and {b}?", "Please tell me what {a} plus {b} is.", "Add {a} and {b}.",
        "Do you know what {a} plus {b} is?",
    ),
    ("sum", "zh"): (
        "{a}加{b}等于几？", "{a}加{b}是多少？", "{a}加{b}等于多少？", "请问{a}加{b}等于几？", "{a}加{b}得多少？",
        "你知道{a}加{b}是几吗？", "帮我算一下，{a}加{b}。", "{a}加上{b}是多少？",
    ),
    ("difference", "en"): (
        "What is {a} minus {b}?", "What's {a} minus {b}?", "How much is {a} minus {b}?", "{a} minus {b}?",
        "Please tell me what {a} minus {b} is.", "Can you work out {a} minus {b}?",
        "Do you know what {a} minus {b} is?", "Take {b} away from {a}.",
    ),
    ("difference", "zh"): (
        "{a}减{b}等于几？", "{a}减{b}是多少？", "{a}减{b}等于多少？", "请问{a}减{b}等于几？", "{a}减{b}得多少？",
        "你知道{a}减{b}是几吗？", "帮我算一下，{a}减{b}。", "{a}减去{b}是多少？",
    ),
    ("repeat", "en"): (
        "Repeat after me: {a}.", "Please repeat: {a}.", "Say {a}.", "Please say {a}.", "Can you say {a}?",
        "Repeat {a}.", "Say after me: {a}.",
    ),
    ("repeat", "zh"): (
        "跟我说：{a}。", "请跟我说：{a}。", "跟我读：{a}。", "请重复：{a}。", "请你说：{a}。", "跟着我念：{a}。",
    ),
    ("count", "en"): (
        "Count from {a} to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?",
        "Count for me from {a} to {b}.",
    ),
    ("count", "zh"): ("从{a}数到{b}。", "请从{a}数到{b}。", "你能从{a}数到{b}吗？", "帮我从{a}数到{b}。"),
    ("count to", "en"): ("Count to {b}.", "Please count to {b}.", "Can you count to {b}?", "Count up to {b}."),
    ("count to", "zh"): ("数到{b}。", "请数到{b}。", "你能数到{b}吗？", "帮我数到{b}。"),
    ("greeting", "en"): ("Hello!", "Hi!", "Hi there!", "Hello there!", "Good morning!", "Good evening!", "Hey!"),
    ("greeting", "zh"): ("你好！", "您好！", "你好啊！", "早上好！", "晚上好！", "大家好！", "嗨，你好！"),
    ("name", "en"): (
        "What is your name?", "What's your name?", "Who are you?", "Tell me your name.", "May I know your name?",
        "What are you called?",
    ),
    ("name", "zh"): ("你叫什么名字？", "你是谁？", "请问你叫什么？", "告诉我你的名字。", "你的名字是什么？"),
    ("thanks", "en"): (
        "Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot.", "Many thanks.", "Thank you, Mini.",
    ),
    ("thanks", "zh"): ("谢谢！", "谢谢你！", "非常感谢！", "太感谢了！", "多谢！", "谢谢你的帮助。"),
    ("goodbye", "en"): ("Goodbye!", "Bye!", "Bye bye!", "See you later!", "See you tomorrow!", "Good night!"),
    ("goodbye", "zh"): ("再见！", "拜拜！", "明天见！", "回头见！", "晚安！", "我走了，再见！"),
}  # fmt: skip
_SOCIAL: dict[tuple[str, str], tuple[str, str]] = {  # reply and key
    ("greeting", "en"): ("Hello! How can I help you?", "hello"),
    ("greeting", "zh"): ("你好！我能帮你什么？", "你好"),
    ("name", "en"): ("My name is Mini.", "mini"),
    ("name", "zh"): ("我叫小迷。", "小迷"),
    ("thanks", "en"): ("You are welcome.", "welcome"),
    ("thanks", "zh"): ("不用谢。", "不用谢"),
    ("goodbye", "en"): ("Goodbye! Have a nice day.", "goodbye"),
    ("goodbye", "zh"): ("再见！祝你愉快。", "再见"),
}


@dataclass(frozen=True)
class Exchange:
    """A question of the user and the assistant's reply; ``answer_key`` holds what a right reply contains."""

    skill: str
    lang: str
    question: str
    reply: str
    answer_key: tuple[str, ...]


def draw(rng: random.Random, lang: str, skill: str | None = None) -> Exchange:
    """A random exchange in ``lang`` ("en", "zh"), of ``skill`` or of any in the shares of `SKILLS`."""
    if lang not in ("en", "zh"):
        raise ValueError(f"no dialogues in language {lang!r}; there are 'en' and 'zh'")
    if skill is None:
        skill = rng.choices(list(SKILLS), weights=list(SKILLS.values()))[0]
    if skill not in SKILLS:
        raise ValueError(f"no skill {skill!r}; there are {', '.join(SKILLS)}")
    return _MAKERS.get(skill, _social)(rng, lang, skill)


def typed_variants(exchange: Exchange, rng: random.Random) -> tuple[str, ...]:
    """How a user might type the question: 2–5 different strings, the carefully written one first."""
    question = exchange.question
    bare = re.sub(r"[?？.。!！]$", "", question)
    found = [question, bare, bare.lower()]
    if exchange.lang == "en":
        found.append(bare.replace("What is", "what's").lower())
    if exchange.skill in ("sum", "difference", "count"):
        found.append(_with_digits(bare.lower(), exchange.lang))
    if exchange.skill in ("sum", "difference"):
        a, b = values(exchange.reply, exchange.lang)[:2]
        sign = "+" if exchange.skill == "sum" else "-"
        found.append(rng.choice((f"{a} {sign} {b}", f"{a}{sign}{b}", f"{a}{sign}{b}=?", f"{a} {sign} {b} = ?")))
    return tuple(dict.fromkeys(found))


def right(exchange: Exchange, text: str) -> bool:
    """Whether ``text`` answers the question: case, punctuation and digits-or-words do not matter.

    Sums and differences go by the last number, so that an operand is not taken for the result;
    counting by all numbers, repeating by all words; the rest by the key's occurrence.
    """
    lang, key = exchange.lang, exchange.answer_key
    if exchange.skill == "repeat":
        return tokens(text, lang) == tokens(exchange.reply, lang)
    if exchange.skill == "count":
        wanted = tokens(exchange.reply, lang)
        return [t for t in tokens(text, lang) if t in _number_tokens(lang)] == wanted
    heard = tokens(text, lang)
    return all(_last(text, k, lang) if values(k, lang) else _within(tokens(k, lang), heard) for k in key)


def _ask(rng: random.Random, kind: str, lang: str, **slots: str) -> str:
    text = rng.choice(_ASKS[kind, lang]).format(**slots)
    return text[0].upper() + text[1:]


def _arithmetic(rng: random.Random, lang: str, skill: str) -> Exchange:
    total, part = rng.choice(_TOTALS_AND_PARTS)
    a, b, result = (part, total - part, total) if skill == "sum" else (total, part, total - part)
    sign = {"en": {"sum": " plus ", "difference": " minus "}, "zh": {"sum": "加", "difference": "减"}}[lang][skill]
    says = {"a": spoken(a, lang), "b": spoken(b, lang)}
    answer = spoken(result, lang)
    reply = says["a"] + sign + says["b"] + (f"等于{answer}。" if lang == "zh" else f" is {answer}.")
    return Exchange(skill, lang, _ask(rng, skill, lang, **says), reply[0].upper() + reply[1:], (answer,))


def _repeat(rng: random.Random, lang: str, skill: str) -> Exchange:
    """1–4 words, some of them numbers, but no two numbers in a row: they would run together."""
    items: list[str] = []
    number_before = False
    for _ in range(rng.randint(1, 4)):
        is_number = not number_before and rng.random() < 0.2
        items.append(spoken(rng.randint(0, 100), lang) if is_number else rng.choice(_REPEATABLE[lang]))
        number_before = is_number
    said = ("" if lang == "zh" else " ").join(items)
    reply = f"{said}。" if lang == "zh" else f"{said[0].upper()}{said[1:]}."
    return Exchange(skill, lang, _ask(rng, skill, lang, a=said), reply, tuple(items))


def _count(rng: random.Random, lang: str, skill: str) -> Exchange:
    """At most ten numbers upwards; "count to five" starts at one."""
    first = rng.choice((None, rng.randint(0, _LARGEST - 2)))
    last = rng.randint(2, 10) if first is None else rng.randint(first + 1, min(first + 9, _LARGEST))
    numbers = [spoken(n, lang) for n in range(1 if first is None else first, last + 1)]
    if first is None:
        question = _ask(rng, "count to", lang, b=numbers[-1])
    else:
        question = _ask(rng, "count", lang, a=numbers[0], b=numbers[-1])
    said = f"{'，'.join(numbers)}。" if lang == "zh" else f"{', '.join(numbers)}."
    return Exchange(skill, lang, question, said[0].upper() + said[1:], tuple(numbers))


def _fact(rng: random.Random, lang: str, skill: str) -> Exchange:
    fact = rng.choice(FACTS[lang])
    return Exchange(skill, lang, rng.choice(fact.questions), fact.reply, fact.keys)


def _social(rng: random.Random, lang: str, skill: str) -> Exchange:
    reply, key = _SOCIAL[skill, lang]
    return Exchange(skill, lang, _ask(rng, skill, lang), reply, (key,))


_MAKERS: dict[str, Callable[[random.Random, str, str], Exchange]] = {
    "sum": _arithmetic, "difference": _arithmetic, "repeat": _repeat, "count": _count, "fact": _fact,
}  # fmt: skip
_REPEATABLE = {
    "en": sorted({*lexicon.NOUNS, *lexicon.ADJECTIVES, *lexicon.VERBS}),
    "zh": sorted({*lexicon.ZH_NOUNS, *lexicon.ZH_ADJECTIVES, *lexicon.ZH_PLACES, *lexicon.ZH_VERBS}),
}


def _with_digits(text: str, lang: str) -> str:
    """Number words of 0..20 written as digits."""
    for n in range(_LARGEST, -1, -1):
        word = spoken(n, lang)
        # 一下 is "a moment", not a number
        text = re.sub(rf"{word}(?!下)" if lang == "zh" else rf"\b{word}\b", str(n), text)
    return text


@cache
def _number_tokens(lang: str) -> frozenset[str]:
    return frozenset(t for n in range(101) for t in tokens(spoken(n, lang), lang))


def _last(text: str, number: str, lang: str) -> bool:
    return values(text, lang)[-1:] == values(number, lang)


def _within(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
