"""Readings that are not what was asked for: what finds them, and the best of several."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from speechgpt2.asr import Transcription
from speechgpt2.config import from_dict
from speechgpt2.data.conversations import build as building
from speechgpt2.data.conversations import checks
from speechgpt2.data.conversations.build import LineRejected, Recipe, make_conversation
from speechgpt2.data.conversations.checks import Checks, ChecksConfig, RecogniserConfig, alignment, best_reading
from speechgpt2.data.conversations.script import STYLES, SpeakingStyle
from speechgpt2.data.conversations.speaking_style import Tolerance, apply_style, measure, style_error, style_instruction
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Utterance, Voice
from speechgpt2.tts.voices import speak, training_voices
from tests import needs

TEXT, OTHER = "I would like the soup and a glass of water.", "The train to Vienna leaves at eleven tonight."
SPEAKER = training_voices("en")[12]


def utterance(number: int) -> Utterance:
    return Utterance(np.zeros(number + 1, np.float32), "x", "en", Voice("espeak", "f3", "en"), (), ())


def test_best_reading_is_taken_and_a_good_one_ends_the_search():
    read = []

    def reading(number):
        read.append(number)
        if number == 1:
            raise ValueError("said nothing")
        return utterance(number)

    deviations = {0: {"a": 3.0, "b": 0.1}, 2: {"a": 1.5, "b": 1.4}, 3: {"a": 0.2, "b": 2.0}, 4: {"a": 0.9, "b": 1.0}}
    said, found = best_reading(4, reading, lambda spoken: deviations[len(spoken.pcm) - 1])
    assert len(said.pcm) == 3 and found == deviations[2] and read == [0, 1, 2, 3]
    said, found = best_reading(9, reading, lambda spoken: deviations[len(spoken.pcm) - 1])
    assert found == deviations[4] and read[4:] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="said nothing"):
        best_reading(1, lambda number: reading(1), lambda spoken: {})


@needs.extra("synthesis", "pyworld")
@needs.voice(SPEAKER)
def test_best_style_is_chosen_among_readings():
    voice = SPEAKER
    neutral = speak(TEXT, voice)
    styles = [SpeakingStyle(rate=0.7), SpeakingStyle(rate=1.0), SpeakingStyle(rate=1.38)]
    said, deviations = best_reading(
        3, lambda n: speak(TEXT, apply_style(voice, styles[n])),
        lambda spoken: {"fast": style_error(STYLES["fast"], measure(spoken, neutral), Tolerance())},
    )  # fmt: skip
    assert said.voice.rate == round(voice.rate * 1.38) and deviations["fast"] < 1


@needs.voice(SPEAKER)
def test_aligner_detects_another_text():
    right, wrong = speak(TEXT, SPEAKER), speak(OTHER, SPEAKER)
    config = ChecksConfig(alignment=alignment(right) * 0.9)
    assert Checks(config)(right)["alignment"] < 1 < Checks(config)(replace(wrong, text=TEXT))["alignment"]


def test_recogniser_counts_its_errors(monkeypatch):
    transcripts = iter(["i would like the soup and a glass of water", "I would like a soup and the glass of"])
    fake = SimpleNamespace(transcribe=lambda pcm, lang: Transcription(next(transcripts), lang))
    monkeypatch.setattr(checks.asr, "load", lambda model, engine: fake)
    checks._recogniser.cache_clear()
    config = ChecksConfig(cer=0.1, recogniser=RecogniserConfig("small"))
    said = replace(utterance(2400), text=TEXT)
    assert Checks(config)(said) == {"cer": 0.0}
    assert Checks(config)(said)["cer"] == pytest.approx(3 / 10 / 0.1)
    checks._recogniser.cache_clear()


@needs.voice(SPEAKER)
def test_check_detects_another_voice():
    anna, bert = (Voice("espeak", name, "en", "en-us") for name in ("f3", "m5"))
    check = Checks(ChecksConfig(voice=1.0))
    for voice in (anna, bert):
        first = speak(TEXT, voice)
        assert check(first)["voice"] == 0.0  # nothing to hold it against
        check.remember(first)
    assert check(speak(OTHER, anna))["voice"] < 1
    assert check(replace(speak(OTHER, bert), voice=anna))["voice"] > 1


def recipe(**changes) -> Recipe:
    return from_dict(
        Recipe, {"conversations": 4, "languages": ["en"], "scenes": ["travel"], "disfluency": {}, **changes}
    )


@needs.extra("synthesis", "pyworld")
@needs.voice(SPEAKER)
def test_wrong_reading_is_repeated_and_rejected(monkeypatch):
    """A stuttering engine: each line's first reading is of another text."""
    attempts: dict[str, int] = {}

    def stutter(text, voice):
        attempts[text] = attempts.get(text, 0) + 1
        said = speak(OTHER if attempts[text] % 2 else text, voice)
        return replace(said, text=text, voice=voice)

    monkeypatch.setattr(building, "speak", stutter)
    asked = recipe(checks={"alignment": 0.3}, timing={"interruption": {"values": [0.99, 1.0]}})
    monkeypatch.setattr(building, "style_error", lambda *_: 0.0)
    with pytest.raises(LineRejected, match="alignment"):
        make_conversation(replace(asked, attempts=1), 0)
    attempts.clear()
    _, about = make_conversation(asked, 0)
    assert about["deviations"]["alignment"] <= 1
    assert max(attempts.values()) >= 2


@needs.voice(SPEAKER)
def test_speakers_are_those_of_the_recipe():
    voices = [{"engine": "espeak", "name": name, "lang": "en", "accent": "en-us"} for name in ("f3", "m5", "m7")]
    assistant = [{"engine": "espeak", "name": "f2", "lang": "en", "accent": "en-us"}]
    asked = recipe(voices=voices, assistant=assistant, scenes=["weather"])
    for number in range(3):
        _, about = make_conversation(asked, number)
        first, second = (Voice(**voice).speaker for voice in about["voices"])
        assert second == "espeak/en-us+f2" and first in {f"espeak/en-us+{name}" for name in ("f3", "m5", "m7")}


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"checks": {"cer": 0.1}}, "needs a 'recogniser'"), ({"checks": {"voice": 0.0}}, "above 0"),
        ({"voices": [{"engine": "espeak", "name": "f3", "lang": "en"}]}, "two speakers"),
        ({"assistant": [{"engine": "organ", "name": "f3", "lang": "en"}]}, "no engine 'organ'"),
    ],
)  # fmt: skip
def test_recipe_errors_are_user_errors(values, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe(**values)


def test_every_style_has_an_instruction():
    for lang in ("en", "zh"):
        assert len({style_instruction(style, lang) for style in STYLES.values()}) == len(STYLES)
    assert style_instruction(SpeakingStyle(rate=1.23), "en") == ""
