"""Emissions without a trained model: the audio is compared with synthetic speech of the same text.

Alignment with synthetic speech was proposed for talking books (Malfrère and Dutoit 1997). Here the synthetic utterance
is the vocabulary: a token is a part of a phone, about 20 ms long. The probability of a token at a step falls with the
distance of their cepstra, and with the difference of their relative positions in the speech. A frequency warp adapts to
the speaker's vocal tract. The Viterbi search is the same as for a CTC model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import soxr

from speechgpt2.dsp.activity import SPEECH_THRESHOLD, energy_activity
from speechgpt2.dsp.spectrum import BIN_HERTZ, BINS, FRAMES_PER_SECOND, decibels, mel, power
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.tts.alignment.emissions import Emissions, TokenSpan
from speechgpt2.tts.alignment.isolated_espeak import synthesize
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Rendering, Voice, Word
from speechgpt2.types import SAMPLE_RATE

REFERENCE_VOICES = {
    "en": Voice("espeak", "m3", "en", "en-us", rate=160),
    "zh": Voice("espeak", "m3", "zh", MANDARIN, rate=190),
}
BANDS, COEFFICIENTS = 26, 10
LOW, HIGH = 100.0, 7600.0  # Hz: the bands of the reference
WARPS = (0.85, 0.93, 1.0, 1.08, 1.17, 1.27)  # factors between the speaker's frequencies and the reference's
TOKEN_STEPS = 2  # approximate steps of a token
SPREAD = 1.6  # typical difference of features between a speaker and the reference, in standard deviations
DRIFT = 0.1  # typical difference in time, as a share of the speech
FAINT = 0.03  # share of the loudest step's power: quieter steps do not count in means


@dataclass(frozen=True)
class SynthesisAligner:
    """An `EmissionModel` for English and Mandarin, by espeak. The id changes with every change of results."""

    id: str = "synthesis-aligner-2"

    def __call__(self, pcm: np.ndarray, text: str, lang: str) -> Emissions:
        """Compare `pcm [N]` with a synthetic reading of the text."""
        if lang not in REFERENCE_VOICES:
            raise Unalignable(f"there is no reference voice for the language '{lang}'")
        try:
            reference = synthesize(text, REFERENCE_VOICES[lang])
        except MissingDependency:
            raise
        except UserError as error:
            raise Unalignable(str(error)) from None
        return emissions(pcm, reference)


def emissions(pcm: np.ndarray, reference: Rendering) -> Emissions:
    """Estimate emissions of the tokens of a reference utterance in `pcm [N]`.

    Raises:
        Unalignable: the reference has no phones, or the audio is silent.
    """
    tokens = _Reference(reference)
    speech = _SpeechFeatures(pcm)
    likelihoods = max((tokens.log_likelihoods(speech, warp) for warp in WARPS), key=speech.sum_over_speech)
    silent = np.log(np.clip(1 - speech.activity, 1e-4, 1.0))
    blank = likelihoods.max(axis=1) + silent  # in silence as probable as the most probable token
    logits = np.concatenate([blank[:, None], likelihoods], axis=1)
    log_probs = logits - _log_sum(logits)[:, None]
    return Emissions(
        log_probs,
        1 / FRAMES_PER_SECOND,
        range(1, likelihoods.shape[1] + 1),
        tokens.words,
        tokens.phones,
        contiguous=True,
    )


class _SpeechFeatures:
    """Features of speech: its spectrum, and a clock that goes from 0 to 1 and stands still in silence."""

    def __init__(self, pcm: np.ndarray):
        self.power = power(pcm)
        level = self.power.sum(axis=1)
        self.loud = level > level.max(initial=0) * FAINT
        if not self.loud.any():
            raise Unalignable("the audio is silent")
        activity = energy_activity(iter([pcm]))
        self.activity = np.pad(activity, (0, max(0, len(level) - len(activity))), mode="edge")[: len(level)]
        speech_steps = np.cumsum(self.activity >= SPEECH_THRESHOLD)
        self.clock: np.ndarray = speech_steps / max(1, int(speech_steps[-1]))

    def features(self, warp: float) -> np.ndarray:
        """Cepstra and their slopes `[T, 20]`, in standard deviations from their means over the loud steps."""
        values = decibels(self.power @ _bands(warp)) @ _cosines()
        padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
        slopes = (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
        both = np.concatenate([values, slopes], axis=1)
        loud = both[self.loud]
        return (both - loud.mean(axis=0)) / np.maximum(loud.std(axis=0), 1e-3)

    def sum_over_speech(self, likelihoods: np.ndarray) -> float:
        """Sum of the log-likelihoods over the loud steps, after summation over all tokens."""
        return float(_log_sum(likelihoods[self.loud]).sum())


class _Reference:
    """The tokens: parts of the phones of the reference, with their mean features and times."""

    def __init__(self, reference: Rendering):
        if not reference.phones:
            raise Unalignable("the text has no sounds")
        self._reference = reference
        speech = _SpeechFeatures(soxr.resample(reference.pcm, reference.sample_rate, SAMPLE_RATE))
        features = speech.features(1.0)
        means, times, owners = [], [], []
        for number, phone in enumerate(reference.phones):
            first = min(round(phone.start * FRAMES_PER_SECOND), len(features) - 1)
            end = min(max(round(phone.end * FRAMES_PER_SECOND), first + 1), len(features))
            for steps in np.array_split(np.arange(first, end), max(1, round((end - first) / TOKEN_STEPS))):
                means.append(features[steps].mean(axis=0))
                times.append(speech.clock[steps].mean())
                owners.append(number)
        self._means, self._times = np.stack(means), np.array(times)
        self._edges = np.searchsorted(owners, np.arange(len(reference.phones) + 1)).tolist()

    def log_likelihoods(self, speech: _SpeechFeatures, warp: float) -> np.ndarray:
        """Log-likelihood of every token at every step `[T, tokens]`, up to a constant."""
        features = speech.features(warp)
        squares = np.square(features).sum(axis=1)[:, None] + np.square(self._means).sum(axis=1)
        drift = (speech.clock[:, None] - self._times) / DRIFT
        return (features @ self._means.T - squares / 2) / SPREAD**2 - np.square(drift) / 2

    @property
    def phones(self) -> tuple[TokenSpan, ...]:
        edges = self._edges
        return tuple(TokenSpan(p.label, a, b) for p, a, b in zip(self._reference.phones, edges, edges[1:]))

    @property
    def words(self) -> tuple[TokenSpan, ...]:
        return tuple(span for word in self._reference.words if (span := self._word(word)))

    @cached_property
    def _middles(self) -> np.ndarray:
        return np.array([(phone.start + phone.end) / 2 for phone in self._reference.phones])

    def _word(self, word: Word) -> TokenSpan | None:
        inside = np.flatnonzero((word.start <= self._middles) & (self._middles < word.end))
        return TokenSpan(word.text, self._edges[inside[0]], self._edges[inside[-1] + 1]) if len(inside) else None


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """Return log Σ exp over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]


@cache
def _bands(warp: float) -> np.ndarray:
    """Triangular mel filters `[BINS, BANDS]` whose corners are multiplied by `warp`."""
    corners = 700 * (10 ** (np.linspace(mel(LOW), mel(HIGH), BANDS + 2) / 2595) - 1) * warp
    bins = np.arange(BINS)[:, None] * BIN_HERTZ
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _cosines() -> np.ndarray:
    angles = np.pi / BANDS * (np.arange(BANDS)[:, None] + 0.5) * np.arange(1, COEFFICIENTS + 1)
    return np.cos(angles).astype(np.float32)
