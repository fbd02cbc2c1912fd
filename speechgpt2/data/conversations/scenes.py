"""The scenes of conversations that come with the package; their texts are in curriculum/texts/scenes_*.yaml."""

from __future__ import annotations

from functools import cache

from speechgpt2.curriculum.texts import read
from speechgpt2.data.conversations.scene_grammar import Scene


@cache
def scenes(lang: str) -> dict[str, Scene]:
    """Return the scenes of a language ("en", "zh") by name."""
    texts = read(f"scenes_{lang}")
    return {name: Scene(name, lang, text, texts["slots"]) for name, text in texts["scenes"].items()}
