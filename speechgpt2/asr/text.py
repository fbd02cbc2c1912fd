"""Text normalisation: what is compared is what was said, not how it is written.

Numbers become words (num2words) or hanzi (cn2an), traditional characters become simplified ones (OpenCC), and case and
punctuation are dropped. Both sides of a comparison pass through `normalise`: a recogniser writes "8" or "eight".
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from speechgpt2.extras import require

# Words that have two spellings in recognisers' output.
_SPELLINGS = {"mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay"}
_SIGNS_EN = {"%": " percent ", "&": " and ", "+": " plus ", "=": " equals ", "×": " times ", "÷": " divided by "}
_SIGNS_ZH = {"+": "加", "=": "等于", "×": "乘", "÷": "除以"}
_CURRENCIES = {"$": "dollars", "£": "pounds", "€": "euros"}
_BRACKETED = re.compile(r"\[[^\]]*\]|\([^)]*\)|【[^】]*】")  # recognisers' remarks: [Music]
_MINUS = re.compile(r"(?<=\d)\s*[-−–]\s*(?=\d)")
_THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)")
_CONTRACTIONS = (
    (re.compile(r"\b(what|it|that|there|he|she|where|who|how|here)'s\b"), r"\1 is"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'ve\b"), " have"),
)
_EN_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_ZH_UNIT = re.compile(r"[a-zà-ɏ]+(?:'[a-z]+)?|\w")
_LONGEST = 6  # digits; a longer number is read digit by digit, as telephone numbers are


def normalise(text: str, language: str) -> list[str]:
    """Split a text into the units of its error rate: words in English, characters in Mandarin.

    Args:
        text: Text in any case, punctuation, script variant and spelling of numbers.
        language: "en" or "zh"; other languages keep their digits.

    Returns:
        Lower-case words; for "zh" simplified characters, where a word in Latin letters is one unit.

    Raises:
        UserError: A library of the extra `asr` is not installed.
    """
    plain = unicodedata.normalize("NFKC", _BRACKETED.sub(" ", text)).lower().replace("’", "'")
    if language == "zh":
        return _mandarin(plain)
    return _english(plain) if language == "en" else re.findall(r"\w+(?:'\w+)*", plain)


def _english(text: str) -> list[str]:
    number = require("num2words", "asr").num2words
    for pattern, words in _CONTRACTIONS:
        text = pattern.sub(words, text)
    text = re.sub(r"([$£€])\s?(\d[\d,]*(?:\.\d+)?)", lambda m: f"{m[2]} {_CURRENCIES[m[1]]}", text)
    text = _MINUS.sub(" minus ", text)
    for sign, word in _SIGNS_EN.items():
        text = text.replace(sign, word)
    text = _THOUSANDS.sub(lambda m: number(int(m[0].replace(",", ""))).replace(",", ""), text)
    text = re.sub(r"(\d+):(\d\d)\b", lambda m: m[1] if m[2] == "00" else f"{m[1]} {m[2]}", text)
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda m: f" {number(int(m[1]), to='ordinal')} ", text)
    text = re.sub(r"\d+\.\d+|\d+", lambda m: f" {_read_english(m[0], number)} ", text)
    tokens = [_SPELLINGS.get(word, word) for word in _EN_WORD.findall(text)]
    # "one hundred and one" and "one hundred one" are the same number.
    return [
        word
        for i, word in enumerate(tokens)
        if not (word == "and" and i and tokens[i - 1] in ("hundred", "thousand", "million"))
    ]


def _read_english(digits: str, number: Any) -> str:
    if "." in digits:
        return number(float(digits)) if len(digits) <= _LONGEST + 1 else " point ".join(map(_spell, digits.split(".")))
    value = int(digits)
    if (len(digits) > 1 and digits[0] == "0") or len(digits) > _LONGEST:
        return _spell(digits)
    # Recognisers write quantities above 999 with a comma, or as words; four bare digits are most often a year.
    if 1100 <= value <= 1999 or 2010 <= value <= 2099:
        return number(value, to="year")
    return number(value).replace(",", "")


def _spell(digits: str) -> str:
    number = require("num2words", "asr").num2words
    return " ".join(number(int(digit)) for digit in digits)


def _mandarin(text: str) -> list[str]:
    convert = require("cn2an", "asr").transform
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), _simplifier().convert(text))
    text = _MINUS.sub("减", text)
    for sign, word in _SIGNS_ZH.items():
        text = text.replace(sign, word)
    text = re.sub(r"(\d+):(\d\d)(?!\d)", lambda m: f"{m[1]}点" if m[2] == "00" else f"{m[1]}点{m[2]}分", text)
    text = re.sub(rf"\b0\d+(?![.\d])|\d{{{_LONGEST + 1},}}", lambda m: _digits_to_hanzi(m[0]), text)
    text = convert(text, "an2cn").replace("两", "二").replace("〇", "零")
    return [unit for unit in _ZH_UNIT.findall(text) if unit != "_"]


def _digits_to_hanzi(digits: str) -> str:
    return "".join("零一二三四五六七八九"[int(digit)] for digit in digits)


@cache
def _simplifier() -> Any:
    return require("opencc", "asr").OpenCC("t2s")
