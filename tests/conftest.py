"""Fixtures of the data tests: they use the real engines and skip where one is not installed."""

from __future__ import annotations

import pytest

from speechgpt2.tts.utterance import SynthesisUnavailable, Voice
from speechgpt2.tts.voices import speak


@pytest.fixture(scope="session")
def need_voice():
    """A function that skips the test unless a voice can speak here."""

    def check(voice: Voice) -> Voice:
        try:
            speak("你好" if voice.lang == "zh" else "hello", voice)
        except SynthesisUnavailable as reason:
            pytest.skip(str(reason))
        return voice

    return check
