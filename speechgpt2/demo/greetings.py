"""Greetings: speech of the assistant with which a conversation starts, read from a file of JSON lines.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}      # as in the released model's file
    {"text": "Hello!", "audio": [688, 131, 226, …]}                    # plain text, independent of a tokenizer

`audio` holds the codec's codes, flattened frame by frame. `text` holds the text token of each patch, filler tokens
included. The caller passes the tokenizer and the codec; audio is decoded only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt2.greeting_file import Entry, read_entries

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

    def convert(entry: Entry) -> Greeting:
        text = entry.text if isinstance(entry.text, str) else detokenize(entry.text)
        return Greeting(text, entry.codes, decode_audio)

    return read_entries(path, codebooks, codebook_size, convert)
