"""What the assistant says while the user waits for a tool: a few words in the user's language."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.long_form import language_of
from speechgpt2.server.items import ConversationItem

WORDS = {"en": "One moment, please.", "zh": "请稍等。"}
INSTRUCTIONS = "The user waits for a tool. In one short sentence, in the language of the user, say that it takes time."
MAX_PATCHES = 40  # of a filler that the model words itself


def language(items: Iterable[ConversationItem]) -> Literal["en", "zh"]:
    """Return the language of what the user said last."""
    texts = [item.text for item in items if item.type == "message" and item.role == "user" and item.text]
    return language_of(texts[-1]) if texts else "en"


def options(language: Literal["en", "zh"], reads_aloud: bool) -> ReplyOptions:
    """Return the options of the reply: fixed words where the model can read them aloud, otherwise instructions."""
    if reads_aloud:
        return ReplyOptions(text=WORDS[language])
    return ReplyOptions(INSTRUCTIONS, max_patches=MAX_PATCHES, tools=())
