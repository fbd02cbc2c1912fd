"""Benchmark of styles: what is asked for, what is measured, what it costs, and whether the words survive.

    sg2 bench styles --asr base

Voices of a set speak random sentences of the curriculum, which are then delivered in every style as a stream of
patches. "normal" is the speech as it is, the control of all other rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.asr import registry
from speechgpt2.asr.error_rate import count_errors
from speechgpt2.asr.recogniser import Recogniser
from speechgpt2.bench.machine import open_console
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.dsp.autocorrelation_pitch import track_pitch
from speechgpt2.dsp.delivery import Delivery
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.style import Style, named_style, table
from speechgpt2.tts.utterance import Utterance
from speechgpt2.tts.voice_sets import voice_set
from speechgpt2.tts.voices import speak
from speechgpt2.types import PATCH_SAMPLES, SAMPLE_RATE

RATES = (0.5, 0.8, 1.5, 2.0)  # besides those of the named styles


@dataclass(frozen=True)
class StyleResult:
    """One style over some utterances of one language: the means of what is measured."""

    style: str = column("style")
    lang: str = column("language")
    asked_rate: float = column("rate asked", ".2f")
    rate: float = column("measured", ".3f")
    asked_pitch: float = column("semitones asked", "+.1f")
    pitch: float | None = column("measured", "+.2f")
    asked_level: float = column("dB asked", "+.1f")
    level: float = column("measured", "+.1f")
    voiced: float = column("voiced, of before", ".2f")
    cost: float = column("% of a core", ".2f")
    errors: float | None = column("WER / CER", ".3f")


def main(
    voices: str = "natural", sentences: int = 4, asr: str | Path | None = None, out: str | Path | None = None
) -> list[StyleResult]:
    """Run the benchmark; print the table and return its rows.

    Args:
        voices: The set of voices.
        sentences: Sentences of each language.
        asr: A recogniser (`asr.registry`) that writes the words down; None: they are not checked.
        out: A JSON file for the rows.

    Raises:
        UserError: There is no such set or recogniser, or the engine of a voice is not installed.
    """
    recogniser = None if asr is None else registry.load(asr)
    styles = [*(named_style(name) for name in table()), *(Style(f"rate {rate:g}", rate=rate) for rate in RATES)]
    spoken = {lang: _utterances(voices, lang, sentences) for lang in ("en", "zh")}
    rows = [measure(style, utterances, recogniser) for utterances in spoken.values() for style in styles]
    report.publish({"Styles": rows}, open_console(), out)
    return rows


def measure(style: Style, utterances: Sequence[Utterance], recogniser: Recogniser | None = None) -> StyleResult:
    """Deliver utterances in a style, and measure them."""
    start = time.process_time()
    delivered = [_streamed(utterance.pcm, style) for utterance in utterances]
    cost = time.process_time() - start
    seconds = sum(len(utterance.pcm) for utterance in utterances) / SAMPLE_RATE
    before = [track_pitch(utterance.pcm) for utterance in utterances]
    after = [track_pitch(pcm) for pcm in delivered]
    language, errors = utterances[0].lang, None
    if recogniser is not None:
        texts = [recogniser.transcribe(pcm, language).text for pcm in delivered]
        errors = count_errors([utterance.text for utterance in utterances], texts, language).rate
    louder = [np.log10(pcm.std() / utterance.pcm.std()) for pcm, utterance in zip(delivered, utterances)]
    return StyleResult(
        style=style.name,
        lang=language,
        asked_rate=style.rate,
        rate=seconds * SAMPLE_RATE / sum(map(len, delivered)),
        asked_pitch=style.pitch,
        pitch=_shift(before, after),
        asked_level=style.level,
        level=20 * float(np.mean(louder)),
        voiced=float(_voiced(after) / _voiced(before)),
        cost=100 * cost / seconds,
        errors=errors,
    )


def _streamed(pcm: np.ndarray, style: Style) -> np.ndarray:
    delivery = Delivery(style)
    parts = [delivery.push(pcm[start : start + PATCH_SAMPLES]) for start in range(0, len(pcm), PATCH_SAMPLES)]
    return np.concatenate([*parts, delivery.finish()])


def _voiced(tracks: Sequence[np.ndarray]) -> Any:
    """Return the mean share of voiced frames of pitch tracks, as a number of NumPy."""
    return np.mean([(pitch > 0).mean() for pitch in tracks])


def _shift(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float | None:
    """Return by how many semitones the median pitch has moved; None if hardly anything is voiced."""
    shifts = [
        12 * np.log2(np.median(new[new > 0]) / np.median(old[old > 0]))
        for old, new in zip(before, after)
        if (new > 0).mean() > 0.1
    ]
    return float(np.mean(shifts)) if shifts else None


def _utterances(voices: str, lang: str, count: int) -> list[Utterance]:
    rng, speakers = random.Random(f"styles/{lang}"), voice_set(voices).assistant[lang]
    return [speak(sentence(rng, lang), speakers[number % len(speakers)]) for number in range(count)]
