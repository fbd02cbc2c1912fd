"""What the assistant says without asking the model, in the language of the user's turn."""

from __future__ import annotations

from collections.abc import Mapping

from speechgpt2.assistant.segmentation import HAN
from speechgpt2.types import Text, Turn

WAIT = {"en": "One moment, please.", "zh": "请稍等。"}  # while a tool is at work
FAILED = {"en": "Sorry, that did not work.", "zh": "抱歉，这次没有成功。"}  # when the tools of a turn are given up


def in_language_of(said: str, words: Mapping[str, str]) -> str:
    """Return the words in the language of what the user said."""
    return words["zh" if HAN.search(said) else "en"]


def asked_to_say(sentence: str) -> Turn:
    """Return the turn that asks a model for a sentence, if it cannot read a given text aloud."""
    return Turn("tool", (Text(f"Say this to the user, and nothing else: {sentence}"),))
