"""The released file of greetings: JSON lines with the text and the codes of speech that opens a conversation.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}      # a text token for each patch
    {"text": "Hello!", "audio": [688, 131, 226, …]}                    # plain text, independent of a tokenizer

`audio` holds the codec's codes, flattened frame by frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from speechgpt2.errors import UserError

T = TypeVar("T")
MAX_TOKEN = 2**31


class Entry(NamedTuple):
    """One line of the file: text or token ids, and codes `[T, K]`."""

    text: str | list[int]
    codes: np.ndarray


def read_entries(path: Path, codebooks: int, codebook_size: int, convert: Callable[[Entry], T]) -> list[T]:
    """Read all greetings of a file.

    Args:
        path: The file.
        codebooks: Codes per frame.
        codebook_size: Number of different codes.
        convert: Makes of an entry what the caller needs; its `UserError` gets the number of the line.

    Raises:
        UserError: The file is invalid; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; expected JSON lines") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    greetings = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                greetings.append(convert(_parse(line, codebooks, codebook_size)))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not greetings:
        raise UserError(f"{path}: contains no greeting")
    return greetings


def _parse(line: str, codebooks: int, codebook_size: int) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not JSON") from None
    if not isinstance(entry, dict) or not {"text", "audio"} <= entry.keys():
        raise UserError('a greeting must be an object with "text" and "audio"')
    text, codes = entry["text"], entry["audio"]
    if not _are_below(codes, codebook_size) or not codes or len(codes) % codebooks:
        raise UserError(f'"audio" must be a list of codes in 0…{codebook_size - 1}, {codebooks} for each frame')
    if not isinstance(text, str) and not _are_below(text, MAX_TOKEN):
        raise UserError('"text" must be a list of token ids, or a string')
    return Entry(text, np.array(codes, np.int64).reshape(-1, codebooks))


def _are_below(values: Any, limit: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < limit for value in values)
