"""Checks of the transcript, on texts with the fault and without."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from speechgpt2.data.clean.transcript_checks import (
    RateOutliers,
    RateOutliersConfig,
    disagreement,
    error_rate,
    language_of,
    repeats,
    units,
)
from speechgpt2.data.record import Clip, Language, Quality


@pytest.mark.parametrize(
    ("text", "declared", "code"),
    [
        ("hello world", "", "en"), ("hello world", "de", "de"), ("hello world", "zh", "en"), ("你好，world", "", "zh"),
        ("こんにちは世界", "", "ja"), ("привет", "en", "ru"), ("안녕", "", "ko"), ("123 !?", "fr", "fr"), ("", "", ""),
        ("你好", "yue", "yue"),
    ],
)  # fmt: skip
def test_script_gives_the_language(text, declared, code):
    assert language_of(text, declared).code == code


def test_units_are_words_and_characters():
    assert units("Hello, 你好 WiFi!") == ["hello", "你", "好", "wifi"]


def test_repeats_of_ten_words():
    loop = "one two three four five six seven eight nine ten "
    assert repeats(loop) == 1 and repeats(loop * 5) == 5
    assert repeats("今天天气很好我们去玩" * 4) == 4 and repeats("short") == 0


def reference(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_error_rate_is_the_edit_distance():
    rng = random.Random(1)
    for _ in range(100):
        a, b = ([rng.choice("abc") for _ in range(rng.randint(1, 9))] for _ in range(2))
        assert error_rate(" ".join(a), " ".join(b)) == reference(a, b) / max(len(a), len(b))
    assert error_rate("", "a") == 1.0 and error_rate("", "") == 0.0


def test_disagreement_needs_two():
    assert disagreement(["a"]) is None
    assert disagreement(["a b", "a b", "a c"]) == pytest.approx(1 / 3)


def rated(number: int, rate: float, parent: str = "p") -> Clip:
    quality = Quality(extra={"characters_per_second": rate})
    return Clip(f"{parent}-{number}", parent, lang=Language("en"), quality=quality)


def test_rate_outliers_are_relative_to_the_recording():
    slow = [rated(n, 8 + n % 4) for n in range(20)]
    fast = [rated(n, 18 + n % 4, "q") for n in range(20)]
    odd = rated(99, 19.0)  # ordinary elsewhere
    clips = [*slow, odd, *fast, rated(0, 19.0, "lonely"), replace(rated(100, 1.0), quality=Quality())]
    checked = list(RateOutliers(RateOutliersConfig())(lambda: iter(clips)))
    outliers = {clip.id: clip.quality.extra.get("rate_outlier") for clip in checked}
    assert [clip.id for clip in checked] == [clip.id for clip in clips]
    assert outliers["p-99"] > 1.5 and outliers["p-2"] == 0 and outliers["q-3"] < 1.5
    assert outliers["lonely-0"] == 0
