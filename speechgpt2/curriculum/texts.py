"""The texts of the curriculum, read from the YAML files in texts/."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "texts"
LANGUAGES = ("en", "zh")


@cache
def read(name: str) -> Any:
    """Return the content of texts/`name`.yaml as plain values. It is read once; do not change it."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def words(lang: str, kind: str) -> tuple[str, ...]:
    """Return the words of a part of speech, such as "nouns", in the order of lexicon.yaml."""
    return tuple(read("lexicon")[lang][kind].split())


@cache
def characters() -> frozenset[str]:
    """Return all characters of the texts."""
    return frozenset("".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")))
