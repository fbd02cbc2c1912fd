"""Greetings: speech of the assistant with which a conversation starts, read from a file of JSON lines.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}      # as in the released model's file
    {"text": "Hello!", "audio": [688, 131, 226, …]}                    # plain text, independent of a tokenizer

`audio` holds the codec's codes, flattened frame by frame. `text` holds the text token of each patch, filler tokens
included. The caller passes the tokenizer and the codec; audio is decoded only when it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.errors import UserError

Detokenize = Callable[[list[int]], str]  # token ids -> text; UserError for unknown ids
DecodeAudio = Callable[[np.ndarray], np.ndarray]  # codes [T, K] -> pcm [N] float32 at 24 kHz


class Greeting:
    """A greeting.

    Attributes:
        text: What it says.
        codes: Its speech, `[T, K]`.
    """

    def __init__(self, text: str, codes: np.ndarray, decode_audio: DecodeAudio):
        self.text, self.codes, self._decode_audio = text, codes, decode_audio
        self._pcm: np.ndarray | None = None

    def audio(self) -> np.ndarray:
        """Return its speech as `[N]` float32 at 24 kHz, decoded at the first call.

        Raises:
            UserError: The codes are invalid.
        """
        if self._pcm is None:
            self._pcm = self._decode_audio(self.codes)
        return self._pcm


def load_greetings(
    path: Path, codebooks: int, codebook_size: int, detokenize: Detokenize, decode_audio: DecodeAudio
) -> list[Greeting]:
    """Load a file of greetings.

    Args:
        path: A file of JSON lines.
        codebooks: Codes per frame.
        codebook_size: Number of different codes.
        detokenize: Converts token ids to text.
        decode_audio: Converts codes to audio.

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
                greetings.append(_parse(line, codebooks, codebook_size, detokenize, decode_audio))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not greetings:
        raise UserError(f"{path}: contains no greeting")
    return greetings


def _parse(
    line: str, codebooks: int, codebook_size: int, detokenize: Detokenize, decode_audio: DecodeAudio
) -> Greeting:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not JSON") from None
    if not isinstance(entry, dict) or not {"text", "audio"} <= entry.keys():
        raise UserError('a greeting must be an object with "text" and "audio"')
    text, codes = entry["text"], entry["audio"]
    if not _is_id_list(codes) or not codes or len(codes) % codebooks or max(codes) >= codebook_size:
        raise UserError(f'"audio" must be a list of codes in 0…{codebook_size - 1}, {codebooks} for each frame')
    if not isinstance(text, str) and not _is_id_list(text):
        raise UserError('"text" must be a list of token ids, or a string')
    array = np.array(codes, np.int64).reshape(-1, codebooks)
    return Greeting(text if isinstance(text, str) else detokenize(text), array, decode_audio)


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**31 for number in value)
