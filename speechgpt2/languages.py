"""The two languages of the models, and which of them a text is in."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh"]
NAMES = {"en": "English", "zh": "Mandarin"}

HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters, for a set in a regular expression
CHINESE = re.compile(f"[{HAN}]")


def language_of(text: str) -> Language:
    """Return the language of a text: Mandarin if it holds a Chinese character."""
    return "zh" if CHINESE.search(text) else "en"
