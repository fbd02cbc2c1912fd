"""Requested and measured styles of many voices: the tables in docs/synthesize.md.

python -m speechgpt2.data.audit.styles [EVERY]      # every EVERY-th training voice, by default every 5th
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from speechgpt2.data.conversations.checks import best_reading
from speechgpt2.data.conversations.script import NEUTRAL_STYLE, STYLES, SpeakingStyle
from speechgpt2.data.conversations.speaking_style import MeasuredStyle, Tolerance, apply_style, measure, style_error
from speechgpt2.tts.utterance import Utterance, Voice
from speechgpt2.tts.voices import speak, training_voices

TEXTS = {"en": "I would like the soup and a glass of water, please.", "zh": "我要一碗面条，再来一杯茶。"}
EVERY = 5  # every fifth training voice
ATTEMPTS = 3
DIMENSIONS = {  # one at a time, the others unchanged
    "rate": (0.6, 0.8, 1.2, 1.5),
    "pitch": (-6.0, -3.0, 3.0, 6.0),
    "range": (0.2, 0.5, 1.5, 2.0),
    "loudness": (-12.0, -6.0, 3.0, 6.0),
}
SPREAD = (0.1, 0.5, 0.9)  # quantiles of the measured values


def styles(every: int) -> Iterator[str]:
    """Yield a Markdown table: target → median measured style, and the share of voices with a good reading."""
    results: dict[str, list[tuple[MeasuredStyle, int]]] = {name: [] for name in STYLES}
    for voice, neutral in _voices(every):
        for name, style in STYLES.items():
            results[name].append(_measure_attempts(voice, style, neutral))
    yield f"| style | rate | pitch, semitones | range | loudness, dB | voiced | good at once | of {ATTEMPTS} |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, rows in results.items():
        style = STYLES[name]
        median = {key: float(np.median([getattr(row, key) for row, _ in rows])) for key in vars(rows[0][0])}
        pairs = [f"{getattr(style, key):g} → {median[key]:.2f}" for key in DIMENSIONS]
        shares = [float(np.mean([0 < attempts <= limit for _, attempts in rows])) for limit in (1, ATTEMPTS)]
        yield f"| {name} | {' | '.join(pairs)} | {median['voiced']:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |"


def dimensions(every: int) -> Iterator[str]:
    """Yield a Markdown table: each dimension requested by itself, and its measured values."""
    results: dict[tuple[str, float], list[float]] = {(k, v): [] for k, values in DIMENSIONS.items() for v in values}
    for voice, neutral in _voices(every):
        for (key, target), values in results.items():
            style: SpeakingStyle = replace(NEUTRAL_STYLE, **{key: target})  # type: ignore[arg-type]  # none of the keys is `whisper`
            values.append(getattr(measure(speak(neutral.text, apply_style(voice, style)), neutral), key))
    yield "| asked for | measured: median (10 % … 90 % of the voices) |"
    yield "|---|---|"
    for key in DIMENSIONS:
        cells = []
        for target in DIMENSIONS[key]:
            low, middle, high = np.quantile(results[key, target], SPREAD)
            cells.append(f"{target:g} → {middle:.2f} ({low:.2f} … {high:.2f})")
        yield f"| {key} | {'; '.join(cells)} |"


def _voices(every: int) -> Iterator[tuple[Voice, Utterance]]:
    """Yield voices of espeak in both languages, each with a neutral reading."""
    for lang, text in TEXTS.items():
        for voice in [voice for voice in training_voices(lang) if voice.engine == "espeak"][1::every]:
            yield voice, speak(text, voice)


def _measure_attempts(voice: Voice, style: SpeakingStyle, neutral: Utterance) -> tuple[MeasuredStyle, int]:
    """Return the style of the first reading, and the number of readings until one is good; 0 if none is."""
    rng, measured = random.Random(voice.id), list[MeasuredStyle]()

    def measure_deviations(spoken: Utterance) -> dict[str, float]:
        measured.append(measure(spoken, neutral))
        return {"style": style_error(style, measured[-1], Tolerance())}

    _, deviations = best_reading(
        ATTEMPTS, lambda n: speak(neutral.text, apply_style(voice, style, rng if n else None)), measure_deviations
    )
    return measured[0], len(measured) if deviations["style"] <= 1 else 0


def audit(every: int = EVERY) -> Iterable[str]:
    """Yield both tables as lines of Markdown."""
    yield from styles(every)
    yield ""
    yield from dimensions(every)


if __name__ == "__main__":
    print("\n".join(audit(*map(int, sys.argv[1:]))))
