"""Alignment of words and patches, by the rules that the released greetings show."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from speechgpt2.lm.alignment import align_tokens, restore_spacing, split_for_tokenizer

GREETINGS = Path(__file__).parent.parent / "golden" / "lm" / "greetings.jsonl"
EMPTY, END = 151650, 151651


def picture(words: list[tuple[int, str]], patches: int) -> str:
    """`_` filler, `|` the last filler; one character per token."""
    row = align_tokens([(at, [ord(c) for c in word]) for at, word in words], patches, 0, 1)
    return "".join("_|"[token] if token < 2 else chr(token) for token in row)


def test_tokens_follow_the_alignment_rules():
    words = [(0, "嘿！"), (6, "终"), (7, "于"), (8, "等"), (9, "到"), (10, "你"), (13, "了！")]
    assert picture(words, 17) == "嘿！___|终于等到你_|了！_|"
    words = [(0, "天"), (2, "空"), (3, "一"), (4, "声"), (6, "巨"), (7, "响，"), (11, "小")]
    assert picture(words, 12) == "天|空一声|巨响，_|小"


def test_leading_silence_is_filler_only():
    assert picture([(2, "a")], 5) == "__a_|"
    assert picture([], 4) == "____"


def test_crowded_tokens_queue_and_the_row_grows():
    assert picture([(0, "abc"), (1, "de"), (7, "f")], 9) == "abcde_|f|"
    assert picture([(0, "a"), (1, "bcde")], 3) == "abcde"
    assert picture([(4, "a")], 2) == "____a"


@pytest.mark.parametrize("line", GREETINGS.read_text().splitlines())
def test_released_greetings_follow_the_rules(line):
    """The starts of word runs determine the fillers of every released greeting."""
    greeting = json.loads(line)
    row = greeting["text"]
    assert len(row) * 9 == len(greeting["audio"])
    assert greeting["audio"][:9] == [688, 131, 226] * 3
    words = [(at, [token]) for at, token in enumerate(row) if token not in (EMPTY, END)]
    assert align_tokens(words, len(row), EMPTY, END) == row
    ends = [at for at, token in enumerate(row) if token == END]
    assert all(row[at + 1] not in (EMPTY, END) for at in ends if at + 1 < len(row))
    assert all(b - a > 1 for a, b in pairwise(ends))


def test_split_for_tokenizer_separates_characters():
    assert split_for_tokenizer("嘿！OK, 好") == ["嘿", "！", "OK, ", "好"]
    assert split_for_tokenizer(" don't") == [" don't"]
    assert split_for_tokenizer("") == []


def timed(*words: str) -> list[tuple[str, float, float]]:
    return [(word, i / 2, i / 2 + 0.4) for i, word in enumerate(words)]


def test_spacing_and_punctuation_come_from_the_text():
    assert restore_spacing(timed("hello", "there"), "Hello, there!") == ["Hello,", " there!"]
    assert restore_spacing(timed("嘿", "终", "于"), "嘿！终于……") == ["嘿！", "终", "于……"]
    assert restore_spacing(timed("he", "said", "yes"), 'He said: "Yes."\n') == ["He", " said:", ' "Yes."']
    joined = "I don't know, 也许 so."
    words = timed("I", "don't", "know", "也", "许", "so")
    assert "".join(restore_spacing(words, joined)) == joined


def test_spacing_without_a_matching_text():
    assert restore_spacing(timed("two", "plus")) == ["two", " plus"]
    assert restore_spacing(timed("你", "好", "Bob", "Lee")) == ["你", "好", "Bob", " Lee"]
    assert restore_spacing(timed("twenty", "five"), "It's 25.") == ["twenty", " five"]
    assert restore_spacing(timed("five"), "five 25") == ["five"]
    assert restore_spacing([]) == []
