"""The released file of greetings: JSON lines with the text and the codes of speech that opens a conversation.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}      # a text token for each patch
    {"text": "Hello!", "audio": [688, 131, 226, …]}                    # plain text, independent of a tokenizer
    {"name": "anna", "default": true, "text": …, "audio": …}           # a named voice, used where none is chosen

`audio` holds the codec's codes, flattened frame by frame. `name` and `default` are ours, and optional.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from speechgpt2 import hub
from speechgpt2.errors import UserError

T = TypeVar("T")
MAX_TOKEN = 2**31
DEFAULT = "default"  # names the voice of a conversation for which none is chosen
NAME = re.compile(r"(?!\d+$)[\w.-]{1,64}")  # a number would be an index


class Entry(NamedTuple):
    """One line of the file: text or token ids, codes `[T, K]`, and the voice's name if it has one.

    `default`: it opens conversations for which no voice is chosen.
    """

    text: str | list[int]
    codes: np.ndarray
    name: str | None = None
    default: bool = False


def read_entries(path: Path, codebooks: int, codebook_size: int, convert: Callable[[Entry], T]) -> list[T]:
    """Read all greetings of a file.

    Args:
        path: The file.
        codebooks: Codes per frame.
        codebook_size: Number of different codes.
        convert: Converts an entry; its `UserError` gets the number of the line.

    Raises:
        UserError: The file is invalid; names file and line.
    """
    lines = hub.read_text(path, "; expected JSON lines").splitlines()
    greetings, names, has_default = [], set[str](), False
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entry = _parse(line, codebooks, codebook_size)
                if entry.name in names or (entry.default and has_default):
                    raise UserError(
                        f"another greeting is {f'named {entry.name}' if entry.name in names else 'default'}"
                    )
                names |= {entry.name} if entry.name else set()
                has_default |= entry.default
                greetings.append(convert(entry))
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
    name, default = entry.get("name"), entry.get("default", False)
    if name is not None:
        check_name(name)
    if not isinstance(default, bool):
        raise UserError('"default" must be true or false')
    return Entry(text, np.array(codes, np.int64).reshape(-1, codebooks), name, default)


def check_name(name: Any) -> None:
    """Raise `UserError` unless `name` can name a voice."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == DEFAULT:
        raise UserError(
            f"a voice's name must be up to 64 letters, digits, '.', '_' and '-', not a number or '{DEFAULT}': {name!r}"
        )


def _are_below(values: Any, limit: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < limit for value in values)


def append_entry(path: Path, entry: Entry) -> None:
    """Add a greeting to a file, which is made if it is absent. The file is replaced in one step.

    Raises:
        UserError: If the file cannot be read or written.
    """
    before = hub.read_text(path, "; expected JSON lines") if path.exists() else ""
    _write(path, before + ("\n" if before and not before.endswith("\n") else "") + _format(entry))


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Write a file of greetings. Raises `UserError` if it cannot be written."""
    _write(path, "".join(map(_format, entries)))


def _format(entry: Entry) -> str:
    line: dict[str, Any] = {} if entry.name is None else {"name": entry.name}
    line |= {"default": True} if entry.default else {}
    line |= {"text": entry.text, "audio": entry.codes.reshape(-1).tolist()}
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    hub.write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
