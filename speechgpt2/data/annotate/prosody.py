"""Stage: F0, energy, speaking rate and pauses, from the audio and the alignment if there is one.

With an alignment, syllables are counted in the text. Without one, they are peaks of the energy (de Jong and Wempe
2009). These are correct on average over many clips rather than for each, so their label is less certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechgpt2.data.annotate.align import is_ground_truth
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.spectra import activity_of, power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Label, Prosody
from speechgpt2.dsp import autocorrelation_pitch
from speechgpt2.dsp.activity import SPEECH_THRESHOLD, active_spans
from speechgpt2.dsp.spectrum import BIN_HERTZ, FRAMES_PER_SECOND, decibels
from speechgpt2.tts.utterance import Alignment
from speechgpt2.types import SAMPLE_RATE

HOP = SAMPLE_RATE // FRAMES_PER_SECOND
MIN_VOICED_STEPS = 10  # voiced 10 ms steps that a pitch needs
MIN_VOICED_SHARE = 0.25  # speech with a smaller voiced share is a whisper
MAX_INTERVAL = 9.0  # semitones from the median; a greater interval is more likely an octave error than melody
SYLLABLE_BAND = (300.0, 2500.0)  # Hz: the band of vowels
DIP = 1.5  # dB between two syllables
FAINT = 20.0  # dB: a peak that is so much weaker than the loud syllables does not count
QUIETEST = -80.0  # dB: a weaker peak does not count
CERTAIN, UNCERTAIN = 0.8, 0.55  # confidence of rates from text and from peaks: share within 10 % of the truth


@dataclass(frozen=True)
class ProsodyConfig:
    """Options: `shortest_pause` in seconds; shorter silences are closures of consonants."""

    kind: Literal["prosody"] = "prosody"
    shortest_pause: float = 0.15


class MeasureProsody(Stage[ProsodyConfig]):
    """Sets the prosody of the record."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its prosody."""
        if is_ground_truth(clip, "prosody"):
            return clip
        pcm = clip_audio.pcm
        activity = activity_of(clip_audio)
        speech = active_spans(activity, self.config.shortest_pause, 0.05)
        if clip.align.words:
            speech = spoken(clip.align, self.config.shortest_pause)
        if not speech:
            return clip
        rate, label = _rate(clip, clip_audio, speech)
        measured = replace(
            melody(autocorrelation_pitch.track_pitch(pcm), int((activity >= SPEECH_THRESHOLD).sum())),
            energy=round(level(pcm, activity) - clip.audio.gain, 2),
            rate=None if rate is None else round(rate, 3),
            pauses=tuple(round(b[0] - a[1], 3) for a, b in zip(speech, speech[1:])),
        )
        labels = {"prosody": Label("autocorrelation", str(self.version)), "prosody.rate": label}
        return replace(clip, prosody=measured, labels_from={**clip.labels_from, **labels})


def melody(hertz: np.ndarray, speech: int) -> Prosody:
    """Return the F0 fields of the record; empty for a whisper.

    Args:
        hertz: a pitch track `[T]` in 10 ms steps, 0 where unvoiced.
        speech: the number of steps with speech.
    """
    voiced = hertz[hertz > 0]
    if len(voiced) < max(MIN_VOICED_STEPS, MIN_VOICED_SHARE * speech):
        return Prosody()
    semitones = 12 * np.log2(voiced)
    plausible = np.abs(semitones - np.median(semitones)) <= MAX_INTERVAL
    voiced, semitones = voiced[plausible], semitones[plausible]
    low, high = np.quantile(voiced, (0.05, 0.95))
    return Prosody(
        f0_mean=round(float(voiced.mean()), 2), f0_std=round(float(semitones.std()), 3),
        f0_low=round(float(low), 2), f0_high=round(float(high), 2),
    )  # fmt: skip


def level(pcm: np.ndarray, activity: np.ndarray) -> float:
    """Return the RMS in dBFS of the speech in `pcm [N]`."""
    steps = np.square(pcm[: len(activity) * HOP].reshape(-1, HOP)).mean(axis=1)
    active = activity[: len(steps)] >= SPEECH_THRESHOLD
    return 10 * float(np.log10(max(steps[active].mean() if active.any() else 0.0, 1e-10)))


def spoken(align: Alignment, shortest_pause: float) -> list[tuple[float, float]]:
    """Return (start, end) of runs of words without a pause."""
    runs: list[tuple[float, float]] = []
    for word in align.words:
        if runs and word.start - runs[-1][1] < shortest_pause:
            runs[-1] = runs[-1][0], word.end
        else:
            runs.append((word.start, word.end))
    return runs


def _rate(clip: Clip, clip_audio: ClipAudio, speech: list[tuple[float, float]]) -> tuple[float | None, Label]:
    """Return syllables per second of speech without pauses, and their label."""
    seconds = sum(end - start for start, end in speech)
    if clip.align.words:
        count, label = sum(syllables(word.text) for word in clip.align.words), Label("text", "1", CERTAIN)
    else:
        count, label = len(list(nuclei(power_of(clip_audio)))), Label("energy-peaks", "1", UNCERTAIN)
    return (count / seconds if count and seconds > 0 else None), label


# Silent in English: a final e, the e of -ed except after t and d, the e of -es except after a sibilant.
_SILENT = re.compile(
    r"(?<=[aeiouy])([^aeiouy]+)(?:(?<![^aeiouy]l)e|(?<![td])ed|(?<![szxgc])(?<![sc]h)(?<![^aeiouy]l)es)$"
)
_VOWELS = re.compile(r"(?:[aeiou]|y(?![aeiou]))+")
_TWO_SYLLABLES = re.compile(r"(?<![ctsg])(?<!ll)i[ao]")  # two syllables in lion, one in nation and million


def syllables(word: str) -> int:
    """Return the number of syllables, at least 1: of characters in Chinese, of spelled vowels in English."""
    hanzi = sum("\u4e00" <= char <= "\u9fff" for char in word)
    if hanzi:
        return hanzi
    pronounced = _SILENT.sub(r"\1", re.sub(r"[^a-z]", "", word.lower()))
    return max(1, len(_VOWELS.findall(pronounced)) + len(_TWO_SYLLABLES.findall(pronounced)))


def nuclei(spectrum: np.ndarray) -> Iterator[int]:
    """Yield the 10 ms steps of syllable peaks, from power `[T, BINS]`: peaks with a dip on both sides."""
    first, end = (round(hertz / BIN_HERTZ) for hertz in SYLLABLE_BAND)
    levels = decibels(spectrum[:, first:end].sum(axis=1))
    window = np.hanning(9) / np.hanning(9).sum()
    levels = np.convolve(np.pad(levels, 4, mode="edge"), window, "valid")
    floor = max(float(np.quantile(levels, 0.97)) - FAINT, QUIETEST)
    peak, lowest, at = -np.inf, np.inf, 0
    rising = True
    for step, value in enumerate(levels.tolist()):
        if rising:
            if value > peak:
                peak, at = value, step
            elif value < peak - DIP:
                if peak > floor:
                    yield at
                rising, lowest = False, value
        elif value < lowest:
            lowest = value
        elif value > lowest + DIP:
            rising, peak, at = True, value, step
    if rising and peak > floor and len(levels):
        yield at
