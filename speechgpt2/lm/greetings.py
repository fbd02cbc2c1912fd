"""The greetings of a model: speech that opens a conversation and so sets the voice of its replies.

    {"text": [101834, 6313, 151650], "audio": [688, 131, 226, …]}

`audio` holds codes, flattened frame by frame. They enter the context as they are, patch for patch, because the model
was trained on exactly these. `text` may also be a string, whose tokens start with the first patch. A greeting is chosen
by its name, or by its index in the file (greeting_file.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechgpt2 import hub
from speechgpt2.errors import FileWarning, UserError
from speechgpt2.greeting_file import DEFAULT, Entry, append_entry, check_name, read_entries, write_entries
from speechgpt2.types import Mode, Speech

if TYPE_CHECKING:
    from speechgpt2.lm.prompt import Prompt
    from speechgpt2.lm.segments import AlignedSpeech

FILE = "greetings.jsonl"  # beside a model
RELEASED = "released_greetings.jsonl"  # those of SpeechGPT 2.0-preview's code repository, as published
NAMED = 12  # voices that an error lists


@dataclass(frozen=True)
class Greetings:
    """The greetings that a model offers; their names are its voices.

    Attributes:
        speech: Each greeting by its name, in the order of the file. One without a name has its index as its name.
        default: Name of the greeting that opens conversations for which none is chosen.
        opens_text: Whether greetings also open conversations with written replies.
        built_in: Whether they come with this package, as the model's folder holds none.
    """

    speech: dict[str, Speech]
    default: str | None = None
    opens_text: bool = False
    built_in: bool = False

    def resolve(self, voice: str | None) -> str | None:
        """Return the name of a voice: itself, or that of the default for None and "default".

        Raises:
            UserError: If there is no such voice; the message lists those that exist.
        """
        if voice is None or voice == DEFAULT:
            return self.default
        if voice not in self.speech:
            names = [*self.speech]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            known = f"this model's voices: {', '.join(names[:NAMED])}{more}" if names else "this model has one voice"
            raise UserError(f"no voice '{voice}'; {known}")
        return voice

    def opening(self, voice: str | None, mode: Mode) -> Speech | None:
        """Return the greeting that opens a conversation, None if there is none.

        Raises:
            UserError: If there is no such voice.
        """
        name = self.resolve(voice)
        return self.speech[name] if name is not None and (self.opens_text or mode[2] == "s") else None

    def with_default(self, voice: str | None = None, index: int | None = None) -> Greetings:
        """Return the same greetings with another default, chosen by name or by its index in the file.

        Raises:
            UserError: If there is no such greeting.
        """
        if index is not None:
            if index >= len(self.speech):
                raise UserError(f"there are {len(self.speech)} greetings, counted from 0, and no number {index}")
            voice = [*self.speech][index]
        return self if voice is None else replace(self, default=self.resolve(voice))


def read_greetings(path: Path, prompt: Prompt) -> Greetings:
    """Read all greetings of a file, for the model of `prompt`.

    The released model saw a greeting at the start of every conversation, so its first one is the default.

    Raises:
        UserError: If the file is invalid or belongs to another model; names the line.
    """
    c = prompt.config
    found = read_entries(path, c.codebooks, c.codebook_size, lambda entry: (entry, _speech(entry, prompt)))
    speech = {entry.name or str(index): speech for index, (entry, speech) in enumerate(found)}
    default = next((name for name, (entry, _) in zip(speech, found, strict=True) if entry.default), None)
    released = not prompt.template.chain_of_modality
    return Greetings(speech, default or ("".join([*speech][:1]) if released else None), released)


def model_greetings(folder: Path, prompt: Prompt, released: bool, file: Path | None = None) -> Greetings:
    """Return the greetings of `file`, else those in the model's folder, else those of the release for its layout.

    Those in the folder that do not fit the model are left out with a warning: the model can be used without them.

    Args:
        folder: The model's folder.
        prompt: Its prompt.
        released: Whether the folder has the released layout.
        file: A file of greetings that the user names.

    Raises:
        UserError: `file` is invalid or belongs to another model; names the line.
    """
    if file is not None:
        return read_greetings(file, prompt)
    beside = folder / FILE
    try:
        if beside.is_file():
            return read_greetings(beside, prompt)
        return _built_in(prompt) if released else Greetings({})
    except UserError as error:
        warnings.warn(f"{error}; the model is used without these greetings", FileWarning, stacklevel=2)
        return Greetings({})


def _built_in(prompt: Prompt) -> Greetings:
    """Return the greetings of the release, which its model's repository lacks; none for a model of other tokens."""
    try:
        found = read_greetings(hub.ASSETS / RELEASED, prompt)
    except UserError:
        return Greetings({})
    same_fillers = all(prompt.special_ids.filler in (speech.tokens or ()) for speech in found.speech.values())
    return replace(found, built_in=True) if same_fillers else Greetings({})


def add_greeting(path: Path, speech: AlignedSpeech, name: str | None, default: bool, prompt: Prompt) -> None:
    """Add a greeting to a file, which is made if it is absent.

    Raises:
        UserError: If the file is invalid or holds this name or another default.
    """
    c = prompt.config
    present = read_entries(path, c.codebooks, c.codebook_size, lambda entry: entry) if path.exists() else []
    if name is not None:
        check_name(name)
        if any(entry.name == name for entry in present):
            raise UserError(f"{path}: already holds a voice '{name}'; choose another name")
    if default and any(entry.default for entry in present):
        raise UserError(f"{path}: already has a default")
    append_entry(path, Entry([*speech.tokens], speech.codes.numpy(), name, default))


def save_greetings(folder: Path, greetings: Greetings) -> None:
    """Write greetings into a model's folder. Raises `UserError` if the file cannot be written."""
    entries = [
        Entry(
            speech.text or "" if speech.tokens is None else [*speech.tokens],
            np.asarray(speech.codes),
            None if name.isdigit() else name,
            name == greetings.default,
        )
        for name, speech in greetings.speech.items()
    ]
    if entries:
        write_entries(folder / FILE, entries)


def _speech(entry: Entry, prompt: Prompt) -> Speech:
    text, codes = entry.text, entry.codes
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
    return Speech(codes=codes, text=spoken.strip(), tokens=tuple(text))
