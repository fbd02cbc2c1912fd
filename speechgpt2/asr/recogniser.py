"""The interface of all recognisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

RATE = 16_000  # Hz; the sample rate of the recognisers' features


class TimedWord(NamedTuple):
    """A recognised word. Times are seconds from the first sample."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcription:
    """What a recogniser understood.

    Attributes:
        text: The text as the recogniser writes it; compare it through `asr.normalise`.
        language: The language that was given, or the one that the recogniser detected.
        words: The words with their times; empty where the recogniser does not tell them.
    """

    text: str
    language: str = ""
    words: tuple[TimedWord, ...] = ()


class Recogniser(Protocol):
    """A recogniser of speech. The same input gives the same text.

    Attributes:
        name: How tables name it, for example "whisper-base".
        languages: The codes of the languages that it recognises ("en", "zh", …).
        independent: Whether it shares no weights with the models that it evaluates.
    """

    name: str
    languages: frozenset[str]
    independent: bool

    def transcribe(self, pcm: NDArray[np.floating], language: str) -> Transcription:
        """Transcribe `pcm` [N] at 24 kHz.

        Args:
            pcm: Mono samples in -1…1; an empty array gives an empty text.
            language: The code of the language; "" lets the recogniser detect it.

        Raises:
            UserError: The recogniser does not know the language.
        """
        ...


def to_features_rate(pcm: NDArray[np.floating]) -> NDArray[np.float32]:
    """Resample `pcm` [N] from 24 kHz to `RATE`."""
    return soxr.resample(np.asarray(pcm, dtype=np.float32), SAMPLE_RATE, RATE)


def check_language(recogniser: Recogniser, language: str) -> str:
    """Return the code without its region ("zh-CN" gives "zh").

    Raises:
        UserError: `recogniser` does not know the language.
    """
    code = language.split("-")[0].lower()
    if code and code not in recogniser.languages:
        known = ", ".join(sorted(recogniser.languages)[:8])
        raise UserError(f"{recogniser.name} does not recognise the language '{language}' (it knows {known})")
    return code
