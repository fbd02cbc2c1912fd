"""The values of the synthesis layer: a voice, and what it said with the time of every word and phone.

Times are seconds from the first sample of the utterance; audio is mono float32 at 24 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from speechgpt2.types import SAMPLE_RATE


class Word(NamedTuple):
    """A written word (English, without punctuation) or one character (Mandarin), in seconds."""

    text: str
    start: float
    end: float


class Phone(NamedTuple):
    """A phone in IPA as espeak prints it, without stress, in seconds; Mandarin vowels carry their tone: ``a3``.

    Silence has no phone: it is the gap between two of them.
    """

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Alignment:
    """Words or characters, phones, and tones (the digit of a syllable) with their times."""

    words: tuple[Word, ...] = ()
    phones: tuple[Phone, ...] = ()
    tones: tuple[Phone, ...] = ()


def tones_of(phones: Sequence[Phone]) -> tuple[Phone, ...]:
    """The tones of Mandarin vowels, which carry them as a digit."""
    return tuple(phone._replace(label=phone.label[-1]) for phone in phones if phone.label[-1:].isdigit())


@dataclass(frozen=True)
class Voice:
    """One way of speaking: an engine's speaker and how it is driven.

    rate         words per minute of running English speech, nominally 175
    pitch        0..100, 50 is the speaker's own
    pitch_range  0..100, 50 is the speaker's own (espeak only)
    gap          extra silence between words, in units of 10 ms (espeak only)
    gain         dB relative to the common speech level
    take         which of its readings, for engines that do not always speak alike
    manner       how to speak, in words, for engines that can be told
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
    take: int = 0
    manner: str = ""

    @property
    def speaker(self) -> str:
        """Who speaks, however driven: ``espeak/en-us+f3``, ``flite/slt``. Stable across runs."""
        return f"{self.engine}/{self.accent}+{self.name}" if self.accent else f"{self.engine}/{self.name}"

    @property
    def id(self) -> str:
        """Speaker and settings, stable across runs: equal ids sound the same."""
        settings = f"r{self.rate}p{self.pitch}x{self.pitch_range}g{self.gap}v{self.gain:+.1f}"
        told = (f"t{self.take}" if self.take else "") + (f"/{self.manner}" if self.manner else "")
        return f"{self.speaker}/{settings}{told}"


@dataclass(frozen=True)
class Rendering:
    """What an engine returns: ``pcm`` float32 [N] at its own ``sample_rate``, untrimmed; times if it knows them."""

    pcm: np.ndarray
    sample_rate: int
    words: tuple[Word, ...] = ()
    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True)
class Utterance:
    """AlignedSpeech text: ``pcm`` float32 [N] at 24 kHz, with exact word and phone times where known."""

    pcm: np.ndarray = field(repr=False)
    text: str
    lang: str
    voice: Voice
    words: tuple[Word, ...]
    phones: tuple[Phone, ...]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.pcm) / SAMPLE_RATE
