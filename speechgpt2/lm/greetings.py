"""Greetings of the released format: speech of the model with the text token of each patch, in a file of JSON lines.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}

`audio` holds codes, flattened frame by frame. They enter the context as they are, patch for patch: laid out anew, or
decoded and encoded again, they would not be what the model was trained on. `text` may also be a string, which is laid
out from the start.
"""

from __future__ import annotations

from pathlib import Path

from speechgpt2.errors import UserError
from speechgpt2.greeting_file import Entry, read_entries
from speechgpt2.lm.prompt import Prompt
from speechgpt2.types import Speech

FILE = "greetings.jsonl"  # beside a model


def read_greetings(path: Path, prompt: Prompt) -> list[Speech]:
    """Read all greetings of a file, for the model of `prompt`.

    Raises:
        UserError: If the file is invalid or belongs to another model; names the line.
    """
    c = prompt.config
    return read_entries(path, c.codebooks, c.codebook_size, lambda entry: _greeting(entry, prompt))


def _greeting(entry: Entry, prompt: Prompt) -> Speech:
    text, codes = entry
    if isinstance(text, str):
        return Speech(codes=codes, text=text)
    frames = prompt.config.patch_frames
    if len(text) * frames != len(codes):
        raise UserError(f'"text" has {len(text)} tokens for {len(codes)} frames; a token is for {frames} frames')
    unknown = [token for token in text if prompt.tokenizer.id_to_token(token) is None]
    if unknown:
        raise UserError(f"the model has no token {unknown[0]}; use the greetings of this model")
    fillers = {prompt.special_ids.filler, prompt.special_ids.last_filler}
    spoken = prompt.tokenizer.decode([token for token in text if token not in fillers])
    return Speech(codes=codes, text=spoken.strip(), row=tuple(text))
