"""Checks of a reading, and the best of several readings.

    style       the measured style against the target (speaking_style.py)
    alignment   how well the forced aligner finds the text in the audio, 0…1
    cer         the error rate of a recogniser, against the text
    voice       distance to the speaker's first line, divided by the distance to the other speaker's

Every check returns a deviation in tolerances; up to 1 is good. The reading with the smallest maximum is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from speechgpt2 import asr
from speechgpt2.data.clean.transcript_checks import error_rate
from speechgpt2.dsp.spectrum import cepstra, decibels, power
from speechgpt2.errors import UserError
from speechgpt2.tts.alignment.align import align_speech
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.tts.utterance import Utterance

COEFFICIENTS = 12
FAINT_DB = -25.0  # relative to the loudest frame: quieter frames do not count as voice
SHORTEST = 40  # frames that a voice embedding needs

Deviations = dict[str, float]  # name of a check -> deviation in tolerances


@dataclass(frozen=True)
class RecogniserConfig:
    """The recogniser, as `asr.load` takes it: also a model of this project (`mini`, a folder)."""

    model: str
    engine: Literal["whisper", "funasr", "speechgpt2"] = "whisper"


@dataclass(frozen=True)
class ChecksConfig:
    """The checks of a line besides its style; None for a check that is not made.

    alignment  the least agreement
    cer        the largest error rate of the transcript by `recogniser`
    voice      the largest ratio of the distances to the speaker's own and to the other speaker's first line
    """

    alignment: float | None = None
    cer: float | None = None
    recogniser: RecogniserConfig | None = None
    voice: float | None = None

    def __post_init__(self) -> None:
        if (self.cer is None) != (self.recogniser is None):
            raise UserError("the check 'cer' needs a 'recogniser', and only that check uses one")
        for name in ("alignment", "cer", "voice"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"the check '{name}' must be above 0")

    @property
    def any(self) -> bool:
        """Whether any check is set."""
        return not all(value is None for value in (self.alignment, self.cer, self.voice))


def best_reading(
    attempts: int, read: Callable[[int], Utterance], measure: Callable[[Utterance], Deviations]
) -> tuple[Utterance, Deviations]:
    """Return the best of several readings, and its deviations. The first good one ends the search.

    Args:
        attempts: the most readings.
        read: makes the reading 0, 1 …; one that raises ValueError is skipped.
        measure: returns the deviations of a reading.

    Raises:
        ValueError: all readings failed.
    """
    readings: list[tuple[float, int, Utterance, Deviations]] = []
    failure = ValueError("nothing was read")
    for number in range(attempts):
        try:
            spoken = read(number)
        except UserError:
            raise
        except ValueError as error:
            failure = error
            continue
        deviations = measure(spoken)
        readings.append((max(deviations.values(), default=0.0), number, spoken, deviations))
        if readings[-1][0] <= 1:
            break
    if not readings:
        raise failure
    _, _, spoken, deviations = min(readings, key=lambda reading: reading[:2])
    return spoken, deviations


class Checks:
    """The checks of one conversation; they compare a speaker's lines with the speaker's first one."""

    def __init__(self, config: ChecksConfig):
        self.config = config
        self._voices: dict[str, np.ndarray] = {}  # speaker -> voice of the first line

    def __call__(self, spoken: Utterance) -> Deviations:
        """Return the deviations of all checks except style. Raises `UserError` if a recogniser is missing."""
        config, deviations = self.config, Deviations()
        if config.alignment is not None:
            deviations["alignment"] = _ratio(config.alignment, alignment(spoken))
        if config.cer is not None and config.recogniser is not None:
            deviations["cer"] = error_rate(spoken.text, _recogniser(config.recogniser)(spoken)) / config.cer
        if config.voice is not None:
            deviations["voice"] = self._drift(spoken) / config.voice
        return deviations

    def remember(self, spoken: Utterance) -> None:
        """Store a chosen reading, if it is its speaker's first one: later readings are compared with it."""
        vector = voice_of(spoken.pcm)
        if vector is not None:
            self._voices.setdefault(spoken.voice.speaker, vector)

    def _drift(self, spoken: Utterance) -> float:
        vector, speaker = voice_of(spoken.pcm), spoken.voice.speaker
        own = self._voices.get(speaker)
        others = [voice for name, voice in self._voices.items() if name != speaker]
        if vector is None or own is None or not others:
            return 0.0
        return _distance(vector, own) / max(min(_distance(vector, other) for other in others), 1e-6)


def alignment(spoken: Utterance) -> float:
    """Return the agreement of text and audio by the aligner, 0…1; 0 if the text cannot be aligned."""
    try:
        return align_speech(spoken.pcm, spoken.text, spoken.lang)[1]
    except Unalignable:
        return 0.0


def voice_of(pcm: np.ndarray) -> np.ndarray | None:
    """Return the voice embedding `[24]` of `pcm [N]`: mean and spread of the cepstra of the loud frames.

    None if there are too few. `data/clean/speakers.py` uses the same embedding.
    """
    spectrum = power(pcm)
    level = decibels(spectrum.sum(axis=1))
    loud = cepstra(spectrum[level > level.max() + FAINT_DB], COEFFICIENTS)
    return None if len(loud) < SHORTEST else np.concatenate([loud.mean(axis=0), loud.std(axis=0)])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def _ratio(least: float, agreement: float) -> float:
    return least / max(agreement, 1e-3)


Transcribe = Callable[[Utterance], str]


@cache
def _recogniser(config: RecogniserConfig) -> Transcribe:
    recogniser = asr.load(config.model, config.engine)
    return lambda spoken: recogniser.transcribe(spoken.pcm, spoken.lang).text
