"""Emissions without a model: a synthetic voice reads the text, and what is heard is compared with how it said it.

Aligning against a synthesiser's reading is as old as talking books (Malfrère and Dutoit 1997). Here the reading is the
vocabulary: its phones, cut into pieces of some 20 ms, are the tokens. A step's probability of a token falls with the
distance of their cepstra and of how much of the speech is over by then; the speaker's vocal tract is fitted by a warp
of the frequencies. So the same search finds it that reads the emissions of a recogniser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import soxr

from speechgpt2.dsp.activity import SPEECH, energy
from speechgpt2.dsp.spectrum import BINS, FRAMES, HERTZ, decibels, mel, power
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.tts.alignment.emissions import Emissions, Part
from speechgpt2.tts.alignment.reading import read
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Rendering, Voice, Word
from speechgpt2.types import SAMPLE_RATE

READERS = {
    "en": Voice("espeak", "m3", "en", "en-us", rate=160),
    "zh": Voice("espeak", "m3", "zh", MANDARIN, rate=190),
}
BANDS, COEFFICIENTS = 26, 10
LOW, HIGH = 100.0, 7600.0  # Hz of the reader's bands
WARPS = (0.85, 0.93, 1.0, 1.08, 1.17, 1.27)  # of the speaker's frequencies against the reader's
PIECE = 2  # steps of a token, about
SPREAD = 1.6  # of features between a speaker and the reader, in their own standard deviations
DRIFT = 0.1  # share of the speech by which the two are apart
FAINT = 0.03  # of the loudest step's power: not counted in means


@dataclass(frozen=True)
class SynthesisAligner:
    """An `Emitter` for English and Mandarin, by espeak."""

    id: str = "rehearsal-2"

    def __call__(self, pcm: np.ndarray, text: str, lang: str) -> Emissions:
        if lang not in READERS:
            raise Unalignable(f"there is no reader for the language '{lang}'")
        try:
            reading = read(text, READERS[lang])
        except MissingDependency:
            raise
        except UserError as error:
            raise Unalignable(str(error)) from None
        return emissions(pcm, reading)


def emissions(pcm: np.ndarray, reading: Rendering) -> Emissions:
    """Of a reading's pieces in `pcm [N]`. Errors: `Unalignable` if there is nothing to read, or to hear."""
    score = _Score(reading)
    speech = _Speech(pcm)
    near = max((score.nearness(speech, warp) for warp in WARPS), key=lambda found: speech.sum_over_speech(found))
    silent = np.log(np.clip(1 - speech.activity, 1e-4, 1.0))
    blank = near.max(axis=1) + silent  # where nobody speaks, as probable as the likeliest piece
    logits = np.concatenate([blank[:, None], near], axis=1)
    log_probs = logits - _log_sum(logits)[:, None]
    return Emissions(log_probs, 1 / FRAMES, range(1, near.shape[1] + 1), score.words, score.phones, joined=True)


class _Speech:
    """What is heard: its spectrum, and a clock that runs from 0 to 1 while somebody speaks."""

    def __init__(self, pcm: np.ndarray):
        self.power = power(pcm)
        level = self.power.sum(axis=1)
        self.loud = level > level.max(initial=0) * FAINT
        if not self.loud.any():
            raise Unalignable("there is no sound")
        activity = energy(iter([pcm]))
        self.activity = np.pad(activity, (0, max(0, len(level) - len(activity))), mode="edge")[: len(level)]
        spent = np.cumsum(self.activity >= SPEECH)
        self.clock: np.ndarray = spent / max(1, int(spent[-1]))

    def features(self, warp: float) -> np.ndarray:
        """Cepstra and their slopes `[T, 20]`, in standard deviations from their means over what is loud."""
        values = decibels(self.power @ _bands(warp)) @ _cosines()
        padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
        slopes = (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
        both = np.concatenate([values, slopes], axis=1)
        loud = both[self.loud]
        return (both - loud.mean(axis=0)) / np.maximum(loud.std(axis=0), 1e-3)

    def sum_over_speech(self, near: np.ndarray) -> float:
        """How well all of the speech is explained."""
        return float(_log_sum(near[self.loud]).sum())


class _Score:
    """What is to be said: pieces of the reading's phones, and when each of them comes."""

    def __init__(self, reading: Rendering):
        if not reading.phones:
            raise Unalignable("nothing of the text can be said")
        self._reading = reading
        heard = _Speech(soxr.resample(reading.pcm, reading.sample_rate, SAMPLE_RATE))
        features = heard.features(1.0)
        means, times, owners = [], [], []
        for number, phone in enumerate(reading.phones):
            first = min(round(phone.start * FRAMES), len(features) - 1)
            last = min(max(round(phone.end * FRAMES), first + 1), len(features))
            for steps in np.array_split(np.arange(first, last), max(1, round((last - first) / PIECE))):
                means.append(features[steps].mean(axis=0))
                times.append(heard.clock[steps].mean())
                owners.append(number)
        self._means, self._times = np.stack(means), np.array(times)
        self._edges = np.searchsorted(owners, np.arange(len(reading.phones) + 1)).tolist()

    def nearness(self, speech: _Speech, warp: float) -> np.ndarray:
        """Of every step to every piece `[T, pieces]`: a log-probability, but for a constant."""
        heard = speech.features(warp)
        squares = np.square(heard).sum(axis=1)[:, None] + np.square(self._means).sum(axis=1)
        apart = (speech.clock[:, None] - self._times) / DRIFT
        return (heard @ self._means.T - squares / 2) / SPREAD**2 - np.square(apart) / 2

    @property
    def phones(self) -> tuple[Part, ...]:
        edges = self._edges
        return tuple(Part(p.label, a, b) for p, a, b in zip(self._reading.phones, edges, edges[1:]))

    @property
    def words(self) -> tuple[Part, ...]:
        return tuple(part for word in self._reading.words if (part := self._word(word)))

    @cached_property
    def _middles(self) -> np.ndarray:
        return np.array([(phone.start + phone.end) / 2 for phone in self._reading.phones])

    def _word(self, word: Word) -> Part | None:
        inside = np.flatnonzero((word.start <= self._middles) & (self._middles < word.end))
        return Part(word.text, self._edges[inside[0]], self._edges[inside[-1] + 1]) if len(inside) else None


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]


@cache
def _bands(warp: float) -> np.ndarray:
    """Mel triangles `[BINS, BANDS]` whose corners are moved by the factor `warp`."""
    corners = 700 * (10 ** (np.linspace(mel(LOW), mel(HIGH), BANDS + 2) / 2595) - 1) * warp
    bins = np.arange(BINS)[:, None] * HERTZ
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _cosines() -> np.ndarray:
    angles = np.pi / BANDS * (np.arange(BANDS)[:, None] + 0.5) * np.arange(1, COEFFICIENTS + 1)
    return np.cos(angles).astype(np.float32)
