"""The data types of synthesis: a voice, and an utterance with the time of every word and phone.

Times are seconds from the first sample of the utterance. Audio is mono float32 at 24 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from speechgpt2.types import SAMPLE_RATE


class Word(NamedTuple):
    """A written word (English, without punctuation) or one character (Mandarin); times in seconds."""

    text: str
    start: float
    end: float


class Phone(NamedTuple):
    """A phone in IPA as espeak prints it, without stress; times in seconds. Mandarin vowels have their tone: `a3`.

    Silence is not a phone: it is the gap between two phones.
    """

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Alignment:
    """Words or characters, phones, and tones (the digit of a syllable), with their times."""

    words: tuple[Word, ...] = ()
    phones: tuple[Phone, ...] = ()
    tones: tuple[Phone, ...] = ()


def tones_of(phones: Sequence[Phone]) -> tuple[Phone, ...]:
    """Return the tones of Mandarin vowels, which have them as a digit."""
    return tuple(phone._replace(label=phone.label[-1]) for phone in phones if phone.label[-1:].isdigit())


@dataclass(frozen=True)
class Voice:
    """A speaker of an engine, with settings.

    Attributes:
        engine: a key of `engines.ENGINES`.
        name: the speaker's name; what it means depends on the engine.
        lang: "en" or "zh".
        accent: a variety of the language; some engines use it for something else.
        rate: words per minute of running English speech, nominally 175.
        pitch: 0…100; 50 is the speaker's own.
        pitch_range: 0…100; 50 is the speaker's own (espeak only).
        gap: extra silence between words, in units of 10 ms (espeak only).
        gain: dB relative to the common speech level.
        seed: chooses among variations, for engines that have them.
        style: an instruction how to speak, for engines that take one.
    """

    engine: str
    name: str
    lang: str
    accent: str = ""
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50
    gap: int = 0
    gain: float = 0.0
    seed: int = 0
    style: str = ""

    @property
    def speaker(self) -> str:
        """The speaker without settings: `espeak/en-us+f3`, `flite/slt`. Stable across runs."""
        return f"{self.engine}/{self.accent}+{self.name}" if self.accent else f"{self.engine}/{self.name}"

    @property
    def id(self) -> str:
        """Speaker and settings, stable across runs: voices with equal ids sound the same."""
        settings = f"r{self.rate}p{self.pitch}x{self.pitch_range}g{self.gap}v{self.gain:+.1f}"
        variation = (f"t{self.seed}" if self.seed else "") + (f"/{self.style}" if self.style else "")
        return f"{self.speaker}/{settings}{variation}"


@dataclass(frozen=True)
class Rendering:
    """The output of an engine: `pcm [N]` float32 at `sample_rate`, untrimmed, with times if the engine has them."""

    pcm: np.ndarray
    sample_rate: int
    words: tuple[Word, ...] = ()
    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True)
class Utterance:
    """Spoken text: `pcm` float32 `[N]` at 24 kHz, with the times of words and phones where they are known."""

    pcm: np.ndarray = field(repr=False)
    text: str
    lang: str
    voice: Voice
    words: tuple[Word, ...]
    phones: tuple[Phone, ...]

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return len(self.pcm) / SAMPLE_RATE
