"""Normalisation and error rates: what is said counts, not how it is written."""

from __future__ import annotations

import sys

import pytest

from speechgpt2.asr import count_errors, edit_distance, normalise
from speechgpt2.errors import UserError
from tests import needs

pytestmark = needs.extra("asr", "num2words", "cn2an", "opencc")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Three plus 5 is 8.", "three plus five is eight"),
        ("3 + 5 = 8", "three plus five equals eight"),
        ("8 - 3", "eight minus three"),
        ("TWENTY-ONE, 21", "twenty one twenty one"),
        ("101", "one hundred and one"),
        ("1,250", "one thousand two hundred fifty"),
        ("in 1999 and 2024", "in nineteen ninety-nine and twenty twenty-four"),
        ("the 3rd of May", "the third of may"),
        ("3.5%", "three point five percent"),
        ("$5", "five dollars"),
        ("What's that? I can't say, it isn't John's", "what is that I can not say it is not john's"),
        ("10:30, 9:00", "ten thirty, nine"),
        ("Call 007 or 5551234", "call zero zero seven or five five five one two three four"),
        ("[Music] It’s OK, Mr. Smith! (laughs)", "it is okay mister smith"),
    ],
)
def test_english_is_compared_as_it_is_said(written, spoken):
    assert normalise(written, "en") == normalise(spoken, "en")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("3加5等于8", "三加五等于八。"),
        ("請問這裡幾點開門？", "请问这里几点开门"),
        ("2个苹果", "两个苹果"),
        ("5-3=2", "五减三等于二"),
        ("50%", "百分之五十"),
        ("10:30", "十点三十分"),
        ("２１", "二十一"),
        ("13800138000", "一三八零零一三八零零零"),
    ],
)
def test_mandarin_is_compared_as_it_is_said(written, spoken):
    assert normalise(written, "zh") == normalise(spoken, "zh")


def test_units_are_words_in_english_and_characters_in_mandarin():
    assert normalise("Don't go!", "en") == ["do", "not", "go"]
    assert normalise("我爱Python。", "zh") == ["我", "爱", "python"]
    assert normalise("", "en") == normalise("…", "zh") == []
    assert normalise("Ça va 8", "fr") == ["ça", "va", "8"]


def test_edit_distance_is_levenshtein_s():
    assert edit_distance("abc", "abc") == 0
    assert edit_distance("abc", "axc") == 1
    assert edit_distance("ab", "") == 2
    assert edit_distance("", "a") == 1
    assert edit_distance("abc", "bcd") == 2
    assert edit_distance("kitten", "sitting") == 3


def test_errors_are_pooled_over_utterances():
    found = count_errors(["one two three", "4"], ["one too three", "four"], "en")
    assert (found.errors, found.length, found.exact, found.utterances) == (1, 4, 1, 2)
    assert found.rate == 0.25 and found.exact_rate == 0.5
    assert count_errors(["你好"], ["你好你好吗"], "zh").rate == 1.5
    assert count_errors([], [], "en").rate != count_errors([], [], "en").rate  # nan


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UserError, match=r"num2words is not installed; run: pip install 'speechgpt2\[asr\]'"):
        normalise("8", "en")
