"""Greetings of the released format: speech of the model with the text token of each patch, in a file of JSON lines.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}

`audio` holds codes, flattened frame by frame. They enter the context as they are, patch for patch: laid out anew, or
decoded and encoded again, they would not be what the model was trained on. `text` may also be a string, which is laid
out from the start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt
from speechgpt2.types import Speech

FILE = "greetings.jsonl"  # beside a model


def read_greetings(path: Path, prompt: Prompt) -> list[Speech]:
    """Read all greetings of a file, for the model of `prompt`.

    Raises:
        UserError: If the file is invalid or belongs to another model; names the line.
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
                greetings.append(_greeting(line, prompt))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not greetings:
        raise UserError(f"{path}: contains no greeting")
    return greetings


def _greeting(line: str, prompt: Prompt) -> Speech:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not JSON") from None
    if not isinstance(entry, dict) or not {"text", "audio"} <= entry.keys():
        raise UserError('a greeting must be an object with "text" and "audio"')
    text, flat, c = entry["text"], entry["audio"], prompt.config
    if not _are_below(flat, c.codebook_size) or not flat or len(flat) % c.codebooks:
        raise UserError(f'"audio" must be a list of codes in 0…{c.codebook_size - 1}, {c.codebooks} for each frame')
    codes = np.array(flat, np.int64).reshape(-1, c.codebooks)
    if isinstance(text, str):
        return Speech(codes=codes, text=text)
    if not _are_below(text, 2**31):
        raise UserError('"text" must be a list of token ids, or a string')
    if len(text) * c.patch_frames != len(codes):
        raise UserError(
            f'"text" has {len(text)} tokens for {len(codes)} frames; a token is for {c.patch_frames} frames'
        )
    unknown = [token for token in text if prompt.tokenizer.id_to_token(token) is None]
    if unknown:
        raise UserError(f"the model has no token {unknown[0]}; use the greetings of this model")
    fillers = {prompt.special_ids.filler, prompt.special_ids.last_filler}
    spoken = prompt.tokenizer.decode([token for token in text if token not in fillers])
    return Speech(codes=codes, text=spoken.strip(), row=tuple(text))


def _are_below(values: Any, limit: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < limit for value in values)
