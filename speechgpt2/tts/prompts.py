"""A clip of somebody's voice, for engines that speak as the clip does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechgpt2 import audio
from speechgpt2.errors import UserError


class VoicePrompt(NamedTuple):
    """`pcm [N]`, float32 at 24 kHz, and what is said in it."""

    path: Path
    pcm: np.ndarray
    text: str


@cache
def read(path: str) -> VoicePrompt:
    """The clip and the text file of its name beside it. Errors: `UserError` if one is missing or unreadable."""
    beside = Path(path).with_suffix(".txt")
    if not beside.is_file():
        raise UserError(f"{beside}: missing; it holds what is said in {Path(path).name}")
    return VoicePrompt(Path(path), audio.load(path), beside.read_text(encoding="utf-8").strip())


def is_clip(name: str) -> bool:
    """Whether a voice's `accent` is the path of a clip rather than a name."""
    return Path(name).suffix.lower() in {".wav", ".flac", ".mp3", ".ogg"}
