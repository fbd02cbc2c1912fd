"""Voice prompts: a clip and its text, for engines that copy a voice."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechgpt2 import audio
from speechgpt2.errors import UserError


class VoicePrompt(NamedTuple):
    """A clip, `pcm [N]` float32 at 24 kHz, and its text."""

    path: Path
    pcm: np.ndarray
    text: str


@cache
def read_voice_prompt(path: str) -> VoicePrompt:
    """Read a clip, and its text from the file with the same name and the ending .txt.

    Raises:
        UserError: a file is missing or unreadable.
    """
    text_file = Path(path).with_suffix(".txt")
    if not text_file.is_file():
        raise UserError(f"{text_file}: missing; write the text of {Path(path).name} into it")
    return VoicePrompt(Path(path), audio.load(path), text_file.read_text(encoding="utf-8").strip())


def is_audio_path(name: str) -> bool:
    """Whether the `accent` of a voice is the path of a clip rather than a name."""
    return Path(name).suffix.lower() in {".wav", ".flac", ".mp3", ".ogg"}
