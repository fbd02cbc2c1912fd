"""Greetings: what the model may have said before all else, read from a file of JSON lines.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}      # as released
    {"text": "Hello!", "audio": [688, 131, 226, …]}                    # the words, where no tokenizer is to read them

`audio` holds codes, flat, frame after frame; `text` the token of each patch, filler included. Only a model can turn
either into sound and words, so that is asked of the caller, and of the sound not before someone wants to hear it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.errors import UserError

Words = Callable[[list[int]], str]  # token ids -> what is said; UserError for ids that it does not know
Sound = Callable[[np.ndarray], np.ndarray]  # codes [T, K] -> pcm [N] float32 at 24 kHz; UserError for what is no code


class Greeting:
    """What is said, and how it sounds; `codes [T, K]`."""

    def __init__(self, words: str, codes: np.ndarray, sound: Sound):
        self.words, self.codes, self._sound = words, codes, sound

    @cached_property
    def pcm(self) -> np.ndarray:
        """The sound, `[N]` float32 at 24 kHz, decoded when it is first asked for. Errors: `UserError`."""
        return self._sound(self.codes)


def read(path: Path, codebooks: int, size: int, words: Words, sound: Sound) -> list[Greeting]:
    """The greetings in `path`, for `codebooks` of `size` codes each. Errors: `UserError` naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: no text file, where JSON lines are needed") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_greeting(line, codebooks, size, words, sound))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not found:
        raise UserError(f"{path}: holds no greeting")
    return found


def _greeting(line: str, codebooks: int, size: int, words: Words, sound: Sound) -> Greeting:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not JSON") from None
    if not isinstance(entry, dict) or not {"text", "audio"} <= entry.keys():
        raise UserError('a greeting is an object with "text" and "audio"')
    text, flat = entry["text"], entry["audio"]
    if not _numbers(flat) or not flat or len(flat) % codebooks or max(flat) >= size:
        raise UserError(f'"audio" must be a list of codes in 0…{size - 1}, {codebooks} for each frame')
    if not isinstance(text, str) and not _numbers(text):
        raise UserError('"text" must be a list of token ids, or words')
    codes = np.array(flat, np.int64).reshape(-1, codebooks)
    return Greeting(text if isinstance(text, str) else words(text), codes, sound)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**31 for number in value)
