"""Global step: captions of the speaking style in English and Chinese, from measured prosody.

A voice is high or low relative to all clips of its language. It is fast, lively or loud relative to the speaker's
other clips if there are enough, else relative to the language. Loudness depends on the microphone, so only captions of
known speakers mention it. Ordinary values are not mentioned. The method is that of DataSpeech (Lyth and King 2024),
whose bins are those of all clips of a corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from speechgpt2.curriculum.texts import read as read_texts
from speechgpt2.data.annotate.align import is_ground_truth
from speechgpt2.data.pipeline.global_steps import GlobalStep, ReadClips
from speechgpt2.data.record import Clip, Label

PITCH, MELODY, RATE, ENERGY = range(4)
MEASURES = {"pitch": PITCH, "melody": MELODY, "rate": RATE, "energy": ENERGY}  # as captions.yaml names them
RANGES = ((60.0, 110.0), (0.0, 8.0), (0.0, 12.0), (-80.0, 0.0))  # semitones above 1 Hz, semitones, per second, dBFS
AUDIBLE = (1.0, 0.5, 0.35, 2.0)  # the smallest audible differences
CELLS = 250  # cells of a histogram

Phrase = Sequence[str]  # in English and in Mandarin


@dataclass(frozen=True)
class CaptionsConfig:
    """Options.

    Attributes:
        outer: share of a language's clips that count as low, and share that count as high; likewise for slow and fast,
            flat and lively, soft and loud.
        deviations: standard deviations from a speaker's mean from which a clip is unusual.
        enough: clips that the bins of a language or a speaker need.
    """

    kind: Literal["captions"] = "captions"
    outer: float = 0.25
    deviations: float = 0.8
    enough: int = 20


ESTIMATED_SPEAKER = "speakers.id"  # a clip has this label if a stage named its speaker


@dataclass(frozen=True)
class Bins:
    """The bounds `low` and `high` of ordinary values and the mean, for each measure; `clips` were counted."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    clips: int

    def sign(self, measure: int, value: float) -> int:
        """Return −1 below the bounds, 1 above, else 0; 0 for NaN."""
        return (value > self.high[measure]) - (value < self.low[measure])


class Captions(GlobalStep[CaptionsConfig]):
    """Sets "style.caption_en" and "style.caption_zh".

    It needs some kilobytes of memory per language, and less for each speaker with enough clips. A speaker that a stage
    named belongs to one recording, whose clips follow one another. With too few clips there, the speaker is dropped.
    """

    version = 1

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        languages, speakers = self._fit(read)
        for clip in read():
            yield self._captioned(clip, languages.get(clip.lang.code), speakers.get(speaker_of(clip)))

    def _fit(self, read: ReadClips) -> tuple[dict[str, Bins], dict[str, Bins]]:
        languages: dict[str, Histogram] = {}
        known_speakers: dict[str, RunningMoments] = {}
        estimated: dict[str, Bins] = {}
        for _, clips in groupby(read(), lambda clip: clip.parent_id or clip.id):
            of_recording: dict[str, RunningMoments] = {}
            for clip in clips:
                values, speaker = measured(clip), speaker_of(clip)
                if clip.kept and values is not None:
                    languages.setdefault(clip.lang.code, Histogram()).add(values)
                    if speaker:
                        group = of_recording if ESTIMATED_SPEAKER in clip.labels_from else known_speakers
                        group.setdefault(speaker, RunningMoments()).add(values)
            estimated.update(self._bins(of_recording))
        outer, enough = self.config.outer, self.config.enough
        bins = {code: values.bins(outer) for code, values in languages.items() if values.clips >= enough}
        return bins, {**estimated, **self._bins(known_speakers)}

    def _bins(self, speakers: dict[str, RunningMoments]) -> dict[str, Bins]:
        deviations, enough = self.config.deviations, self.config.enough
        return {name: moments.bins(deviations) for name, moments in speakers.items() if moments.clips >= enough}

    def _captioned(self, clip: Clip, language: Bins | None, speaker: Bins | None) -> Clip:
        values = measured(clip)
        if not clip.kept or values is None or language is None or is_ground_truth(clip, "style"):
            return clip
        english, chinese = zip(_voice(values, language, speaker), *_style_phrases(values, language, speaker))
        style = replace(clip.style, caption_en=", ".join(english) + ".", caption_zh="，".join(chinese) + "。")
        clips = (speaker or language).clips
        label = Label(self.name, str(self.version), round(clips / (clips + self.config.enough), 3))
        return replace(clip, style=style, labels_from={**clip.labels_from, "style": label})


def speaker_of(clip: Clip) -> str:
    """Return the id of the only speaker, or ""."""
    return clip.speakers[0].id if len(clip.speakers) == 1 else ""


def measured(clip: Clip) -> tuple[float, ...] | None:
    """Return the four measures of a clip, NaN where unknown; None if all are."""
    prosody = clip.prosody
    pitch = 12 * math.log2(prosody.f0_mean) if prosody.f0_mean else None
    values = (pitch, prosody.f0_std, prosody.rate, prosody.energy)
    if all(value is None for value in values):
        return None
    return tuple(math.nan if value is None else value for value in values)


class Histogram:
    """Histograms of the four measures over a language's clips."""

    def __init__(self) -> None:
        self._counts = np.zeros((len(RANGES), CELLS), np.int64)
        self.clips = 0

    def add(self, values: Sequence[float]) -> None:
        """Count the measures of a clip."""
        self.clips += 1
        for counts, value, (low, high) in zip(self._counts, values, RANGES):
            if not math.isnan(value):
                counts[min(max(int((value - low) / (high - low) * CELLS), 0), CELLS - 1)] += 1

    def bins(self, outer: float) -> Bins:
        """Return bins. Values are ordinary except for the share `outer` of the lowest, and of the highest."""
        low, middle, high = zip(*(self._quantiles(measure, (outer, 0.5, 1 - outer)) for measure in range(len(RANGES))))
        return Bins(low, high, middle, self.clips)

    def _quantiles(self, measure: int, shares: tuple[float, ...]) -> list[float]:
        total = np.concatenate([[0], np.cumsum(self._counts[measure])])
        if not total[-1]:
            return [math.nan] * len(shares)
        return np.interp(np.array(shares) * total[-1], total, np.linspace(*RANGES[measure], CELLS + 1)).tolist()


class RunningMoments:
    """Mean and spread of the four measures over a speaker's clips."""

    def __init__(self) -> None:
        self._sums = [[0.0, 0.0, 0.0] for _ in RANGES]
        self.clips = 0

    def add(self, values: Sequence[float]) -> None:
        """Count the measures of a clip."""
        self.clips += 1
        for sums, value in zip(self._sums, values):
            if not math.isnan(value):
                sums[:] = sums[0] + 1, sums[1] + value, sums[2] + value * value

    def bins(self, deviations: float) -> Bins:
        """Return bins. Values within `deviations` standard deviations of the mean are ordinary."""
        means = [total / count if count else math.nan for count, total, _ in self._sums]
        spreads = [
            math.sqrt(max(0.0, squares / max(count, 1) - mean * mean))
            for (count, _, squares), mean in zip(self._sums, means)
        ]
        widths = [max(deviations * spread, audible) for spread, audible in zip(spreads, AUDIBLE)]
        low, high = (tuple(mean + sign * width for mean, width in zip(means, widths)) for sign in (-1, 1))
        return Bins(low, high, tuple(means), self.clips)


def _voice(values: Sequence[float], language: Bins, speaker: Bins | None) -> Phrase:
    phrases = read_texts("captions")["voice"]
    if math.isnan(values[PITCH]):
        return phrases["whisper"]
    sign = language.sign(PITCH, speaker.mean[PITCH] if speaker else values[PITCH])
    return phrases[("low", "middle", "high")[sign + 1]]


def _style_phrases(values: Sequence[float], language: Bins, speaker: Bins | None) -> list[Phrase]:
    phrases = read_texts("captions")
    table, ordinary = (phrases["speaker"], speaker) if speaker else (phrases["language"], language)
    signs = {name: ordinary.sign(MEASURES[name], values[MEASURES[name]]) for name in table}
    return [pair[signs[name] > 0] for name, pair in table.items() if signs[name]] or [phrases["ordinary"]]
