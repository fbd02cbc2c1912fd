"""What the assistant says whatever the model is, in the language of the user's turn."""

from __future__ import annotations

from collections.abc import Mapping

from speechgpt2.languages import language_of

WAIT = {"en": "One moment, please.", "zh": "请稍等。"}  # while a tool is at work
FAILED = {"en": "Sorry, that did not work.", "zh": "抱歉，这次没有成功。"}  # when the tools of a turn are given up
NOT_UNDERSTOOD = {"en": "Sorry, I did not understand that.", "zh": "对不起，我没听懂。"}
CONSENT = {"en": "All right.", "zh": "好的。"}  # to a style that is meant for later


def in_language_of(said: str, words: Mapping[str, str]) -> str:
    """Return the words in the language of what the user said."""
    return words[language_of(said)]
