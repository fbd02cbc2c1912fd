"""Whole numbers from 0 to 100 in English words and in hanzi, and the spoken units of a text."""

from __future__ import annotations

import re

from speechgpt2.curriculum.texts import words

ONES, TENS = words("en", "ones"), words("en", "tens")
_ZH_DIGITS = words("zh", "digits")
_ZH_NUMBER = re.compile(r"一百|[二三四五六七八九]?十[一二三四五六七八九]?|[零一二三四五六七八九两]")


def english(n: int) -> str:
    """Spell a number in English: 42 -> "forty-two". Raises ValueError outside 0..100."""
    if not 0 <= n <= 100:
        raise ValueError(f"{n} is not within 0..100")
    if n == 100:
        return "one hundred"
    if n < 20:
        return ONES[n]
    tens, ones = divmod(n, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def mandarin(n: int) -> str:
    """Spell a number in Mandarin: 42 -> 四十二. Raises ValueError outside 0..100."""
    if not 0 <= n <= 100:
        raise ValueError(f"{n} is not within 0..100")
    if n == 100:
        return "一百"
    tens, ones = divmod(n, 10)
    if not tens:
        return _ZH_DIGITS[ones]
    return ("" if tens == 1 else _ZH_DIGITS[tens]) + "十" + (_ZH_DIGITS[ones] if ones else "")


def number_to_words(n: int, lang: str) -> str:
    """Spell a number from 0 to 100 in the words of `lang` ("en", "zh")."""
    return mandarin(n) if lang == "zh" else english(n)


def tokens(text: str, lang: str) -> list[str]:
    """Split a text into its spoken units: lower-case words (English) or characters (Mandarin), without punctuation.

    Numbers up to 100 are spelled, so that "8", "eight" and "Eight." are equal. Larger numbers stay digits.
    """
    spelled = re.sub(r"\d+", lambda m: f" {_spell(m[0], lang)} ", text.lower().replace("’", "'"))
    if lang == "zh":
        return [c for c in spelled if c.isalnum()]
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", spelled)


def _spell(digits: str, lang: str) -> str:
    return number_to_words(int(digits), lang) if int(digits) <= 100 else digits


def numbers_in(text: str, lang: str) -> list[int]:
    """Return the numbers in a text, written as digits or words: "Three plus 20 is twenty-three" -> [3, 20, 23]."""
    if lang == "zh":
        # Punctuation separates numbers: 九，十 is nine and ten, 九十 is ninety.
        spelled = re.sub(r"\d+", lambda m: f" {_spell(m[0], lang)} ", text)
        return [int(m) if m.isdigit() else _ZH_VALUES[m] for m in re.findall(rf"\d+|{_ZH_NUMBER.pattern}", spelled)]
    numbers: list[int] = []
    after_tens = False
    for token in tokens(text, lang):
        value = int(token) if token.isdigit() else _EN_VALUES.get(token)
        if token == "hundred":
            numbers[-1:] = [100]
        elif value is not None and after_tens and 1 <= value <= 9:
            numbers[-1] += value
        elif value is not None:
            numbers.append(value)
        after_tens = value is not None and value >= 20 and value % 10 == 0
    return numbers


_EN_VALUES = {word: n for n, word in enumerate(ONES)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
_ZH_VALUES = {mandarin(n): n for n in range(101)} | {"两": 2}
