"""What the assistant knows by heart: some thirty questions per language with one short answer each."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """Ways to ask, the one reply, and what must occur in a right answer."""

    questions: tuple[str, ...]
    reply: str
    keys: tuple[str, ...]


class _Topic(NamedTuple):
    """Facts of one form: {0} is what is asked about, {1} the answer, {2} whatever else."""

    questions: tuple[str, ...]
    reply: str
    answers: tuple[tuple[str, ...], ...]
    key: str = "{1}"


_ENGLISH = (
    _Topic(
        ("What is the capital of {0}?", "What's the capital of {0}?", "Tell me the capital of {0}."),
        "The capital of {0} is {1}.",
        (
            ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"), ("Japan", "Tokyo"),
            ("China", "Beijing"), ("England", "London"), ("Greece", "Athens"), ("Russia", "Moscow"),
            ("Egypt", "Cairo"),
        ),
    ),
    _Topic(
        ("What colour is {0}?", "Tell me, what colour is {0}?", "Which colour is {0}?"),
        "{0} is {1}.",
        (
            ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("a banana", "yellow"), ("blood", "red"),
            ("coal", "black"), ("chocolate", "brown"),
        ),
    ),
    _Topic(
        ("What does a {0} say?", "What sound does a {0} make?"),
        "A {0} says {1}.",
        (("cat", "meow"), ("dog", "woof"), ("cow", "moo"), ("duck", "quack")),
    ),
    _Topic(
        ("How many legs does a {0} have?", "How many legs has a {0}?"),
        "A {0} has {1} legs.",
        (("spider", "eight"), ("dog", "four"), ("bird", "two"), ("bee", "six")),
    ),
    _Topic(
        ("How many {2} are in a {0}?", "How many {2} does a {0} have?"),
        "A {0} has {1} {2}.",
        (("week", "seven", "days"), ("year", "twelve", "months"), ("day", "twenty-four", "hours")),
    ),
    _Topic(
        ("What is the opposite of {0}?", "What's the opposite of {0}?"),
        "The opposite of {0} is {1}.",
        (("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("day", "night"), ("old", "young")),
    ),
)  # fmt: skip

_MANDARIN = (
    _Topic(
        ("{0}的首都是哪里？", "{0}的首都是哪个城市？", "请问{0}的首都在哪里？"),
        "{0}的首都是{1}。",
        (
            ("法国", "巴黎"), ("意大利", "罗马"), ("西班牙", "马德里"), ("德国", "柏林"), ("日本", "东京"),
            ("中国", "北京"), ("英国", "伦敦"), ("希腊", "雅典"), ("俄罗斯", "莫斯科"), ("埃及", "开罗"),
        ),
    ),
    _Topic(
        ("{0}是什么颜色的？", "{0}是什么颜色？", "请问{0}是什么颜色的？"),
        "{0}是{1}的。",
        (
            ("天空", "蓝色"), ("草", "绿色"), ("雪", "白色"), ("香蕉", "黄色"), ("血", "红色"), ("煤", "黑色"),
            ("巧克力", "棕色"),
        ),
    ),
    _Topic(
        ("{0}怎么叫？", "{0}是怎么叫的？"),
        "{0}{1}叫。",
        (("小猫", "喵喵"), ("小狗", "汪汪"), ("小羊", "咩咩"), ("小鸭", "嘎嘎")),
    ),
    _Topic(
        ("{0}有几条腿？", "{0}有多少条腿？"),
        "{0}有{1}条腿。",
        (("蜘蛛", "八"), ("小狗", "四"), ("小鸟", "两"), ("蜜蜂", "六")),
    ),
    _Topic(
        ("{0}有几{2}？", "{0}有多少{2}？"),
        "{0}有{1}{2}。",
        (("一个星期", "七", "天"), ("一年", "十二", "个月"), ("一天", "二十四", "个小时")),
    ),
    _Topic(
        ("{0}的反义词是什么？", "请问{0}的反义词是什么？"),
        "{0}的反义词是{1}。",
        (("热", "冷"), ("大", "小"), ("上", "下"), ("快", "慢"), ("白天", "黑夜"), ("高", "低")),
        key="是{1}",  # one character alone is too easily met
    ),
)  # fmt: skip


def _facts(topics: tuple[_Topic, ...]) -> tuple[Fact, ...]:
    facts = []
    for topic in topics:
        for slots in topic.answers:
            reply = topic.reply.format(*slots)
            questions = tuple(q.format(*slots) for q in topic.questions)
            facts.append(Fact(questions, reply[0].upper() + reply[1:], (topic.key.format(*slots),)))
    return tuple(facts)


FACTS: dict[str, tuple[Fact, ...]] = {"en": _facts(_ENGLISH), "zh": _facts(_MANDARIN)}
