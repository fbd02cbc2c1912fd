"""An engine that joins recordings of whole words and phrases, in the order of the text.

The name of the voice is a folder. Its files are named by their text: `seven.wav`, `good morning.flac`, `名字.mp3`,
`seven_2.wav` for a second recording. It may contain a folder for each speaker; `accent` names one. Recordings are
trimmed and set to a common level, but not changed otherwise, so rate and pitch have no effect. `seed` chooses among the
recordings of a word.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

from speechgpt2 import audio
from speechgpt2.dsp.levels import active_span
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Rendering, Voice, Word
from speechgpt2.types import SAMPLE_RATE

ENDINGS = {".wav", ".flac", ".mp3", ".ogg"}
JOINT = 0.06  # seconds between two recordings
PAUSE = 0.35  # seconds at a comma or the end of a sentence
LEVEL = 0.07  # root mean square of every recording
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\s\W\u4e00-\u9fff][^\s\u4e00-\u9fff]*[^\s\W\u4e00-\u9fff]|[^\s\W\u4e00-\u9fff]")


def render(text: str, voice: Voice) -> Rendering:
    """Join the recordings of a text.

    Raises:
        ValueError: there is no recording of a word.
        UserError: there is no such folder.
    """
    bank = _bank(str(Path(voice.name) / voice.accent))
    units = list(_UNIT.finditer(text))
    pieces: list[np.ndarray] = []
    words: list[Word] = []
    at, samples = 0, 0
    while at < len(units):
        count = next((n for n in range(len(units) - at, 0, -1) if _key(units[at : at + n]) in bank), 0)
        if not count:
            raise ValueError(f"{voice.speaker}: no recording of {units[at][0]!r}")
        readings = bank[_key(units[at : at + count])]
        pcm = _load_recording(readings[(voice.seed + at) % len(readings)])
        words += _words(units[at : at + count], samples, len(pcm))
        following = text[units[at + count - 1].end() : units[at + count].start() if at + count < len(units) else None]
        pause = PAUSE if re.search(r"[,.;:!?，。；：！？、]", following) else JOINT
        pieces += [pcm, np.zeros(round(pause * SAMPLE_RATE), np.float32)]
        samples += len(pcm) + len(pieces[-1])
        at += count
    pcm = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return Rendering(pcm, SAMPLE_RATE, tuple(words), ())


def _key(units: list[re.Match[str]]) -> str:
    """Return the name of a file for some words: lower case, a blank between words that are not hanzi."""
    return re.sub(r"(?<=[\u4e00-\u9fff]) | (?=[\u4e00-\u9fff])", "", " ".join(unit[0].lower() for unit in units))


@cache
def _bank(folder: str) -> dict[str, list[Path]]:
    """Return the recordings of every text, in the order of their names."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of recordings")
    recordings: dict[str, list[Path]] = {}
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS):
        text = re.sub(r"_\d+$", "", path.stem).replace("_", " ")
        recordings.setdefault(_key(list(_UNIT.finditer(text))), []).append(path)
    if not recordings:
        raise UserError(f"{folder}: holds no recordings ({', '.join(sorted(ENDINGS))})")
    return recordings


@cache
def _load_recording(path: Path) -> np.ndarray:
    """Read a recording at 24 kHz, trim the silence around it, and set its level."""
    pcm = audio.load(path)
    span = active_span(pcm, floor_db=-35.0)
    if span is None:
        raise UserError(f"{path}: holds only silence")
    pcm = pcm[slice(*span)]
    scale = LEVEL / max(float(np.sqrt(np.square(pcm).mean())), 1e-6)
    return (pcm * min(scale, 0.95 / float(np.abs(pcm).max()))).astype(np.float32)


def _words(units: list[re.Match[str]], first: int, samples: int) -> list[Word]:
    """Return the words of one recording; its time is divided in proportion to their letters."""
    letters = sum(len(unit[0]) for unit in units)
    words, letters_before = [], 0
    for unit in units:
        start = (first + samples * letters_before / letters) / SAMPLE_RATE
        letters_before += len(unit[0])
        words.append(Word(unit[0], start, (first + samples * letters_before / letters) / SAMPLE_RATE))
    return words
