"""Speech that no model of the project was trained on, as clips for the judges.

`synthetic` speaks on the fly with the held-out voices; `recorded` reads the held-out part of real recordings (the
split is `data.recordings`'). Words and digits are joined to clips of some three seconds: STOI and PESQ judge phrases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechgpt2.corpus import recordings
from speechgpt2.curriculum import sentences
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.tts import voices
from speechgpt2.types import SAMPLE_RATE

MAX_SECONDS = 5.0  # longer recordings are cut: more clips tell more than longer ones
JOINED_SECONDS = 3.0
GAP_SECONDS = 0.1  # between joined words, besides the margins that the recordings keep


@dataclass(frozen=True)
class Clip:
    """`pcm [N]` float32 at 24 kHz, what is said, in which language, and by whom."""

    pcm: NDArray[np.float32] = field(repr=False)
    text: str
    lang: str
    speaker: str


def say(text: str, voice: voices.Voice) -> voices.Utterance:
    """`voices.speak`. Errors: `UserError` where its engine is not installed, ValueError for a text without sound."""
    try:
        return voices.speak(text, voice)
    except MissingDependency as error:
        raise UserError(str(error)) from None


def synthetic(lang: str, clips: int, seed: int = 0) -> list[Clip]:
    """`clips` random sentences in the held-out voices of "en" or "zh", each voice as often as the others."""
    rng, result = random.Random(f"eval/{lang}/{seed}"), []
    for i in range(clips):
        voice = voices.HELD_OUT_VOICES[lang][i % len(voices.HELD_OUT_VOICES[lang])]
        spoken = say(sentences.sentence(rng, lang), voice)
        result.append(Clip(_cut(spoken.pcm), spoken.text, lang, voice.speaker))
    return result


def recorded(folder: str | Path, clips: int, seed: int = 0) -> dict[str, list[Clip]]:
    """Up to `clips` clips of each held-out source below `folder`: ljspeech, fsdd, cmn-words.

    Errors: `UserError` if the folder holds none of them.
    """
    try:
        found = [r for r in recordings.find(Path(folder)) if r.split == "test" and r.source != "cmn-syllables"]
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    result: dict[str, list[Clip]] = {}
    for source in dict.fromkeys(r.source for r in found):
        chosen = [r for r in found if r.source == source]
        random.Random(seed).shuffle(chosen)
        singles = (_clip(r) for r in chosen)
        phrases = (clip for clip in singles if clip is not None)
        stream = phrases if source == "ljspeech" else _joined(phrases)
        result[source] = [clip for clip, _ in zip(stream, range(clips), strict=False)]
    return result


def _clip(recording: recordings.Recording) -> Clip | None:
    item = recordings.load(recording)
    if item is None or item.pcm is None:
        return None
    return Clip(_cut(item.pcm), item.record.text, item.record.lang, item.record.speaker)


def _joined(clips: Iterator[Clip]) -> Iterator[Clip]:
    """Phrases of `JOINED_SECONDS` from single words."""
    gap = np.zeros(int(GAP_SECONDS * SAMPLE_RATE), np.float32)
    words: list[Clip] = []
    for clip in clips:
        words.append(clip)
        if sum(len(word.pcm) for word in words) >= JOINED_SECONDS * SAMPLE_RATE:
            pcm = np.concatenate([part for word in words for part in (word.pcm, gap)])
            yield Clip(_cut(pcm), " ".join(word.text for word in words), clip.lang, clip.speaker)
            words = []


def _cut(pcm: np.ndarray) -> NDArray[np.float32]:
    return np.asarray(pcm[: int(MAX_SECONDS * SAMPLE_RATE)], dtype=np.float32)
