"""Styles asked for against styles measured, over many voices: the tables in docs/synthesize.md.

python -m speechgpt2.data.audit.styles [EVERY]      # of the training voices every 5th, if not said otherwise
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from speechgpt2.data.conversations.checks import best_reading
from speechgpt2.data.conversations.script import NEUTRAL_STYLE, STYLES, SpeakingStyle
from speechgpt2.data.conversations.speaking_style import Measured, Tolerance, apply_style, measure, style_error
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
SPREAD = (0.1, 0.5, 0.9)  # quantiles of what is measured


def styles(every: int) -> Iterator[str]:
    """Yield a Markdown table: target → median measured style, and the share of voices with a good reading."""
    found: dict[str, list[tuple[Measured, int]]] = {name: [] for name in STYLES}
    for voice, neutral in _voices(every):
        for name, style in STYLES.items():
            found[name].append(_tried(voice, style, neutral))
    yield f"| style | rate | pitch, semitones | range | loudness, dB | voiced | good at once | of {ATTEMPTS} |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, rows in found.items():
        style = STYLES[name]
        middle = {key: float(np.median([getattr(got, key) for got, _ in rows])) for key in vars(rows[0][0])}
        pairs = [f"{getattr(style, key):g} → {middle[key]:.2f}" for key in DIMENSIONS]
        shares = [float(np.mean([0 < tries <= most for _, tries in rows])) for most in (1, ATTEMPTS)]
        yield f"| {name} | {' | '.join(pairs)} | {middle['voiced']:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |"


def dimensions(every: int) -> Iterator[str]:
    """Rows of a Markdown table: each dimension asked for by itself, and what was measured of it."""
    found: dict[tuple[str, float], list[float]] = {(k, v): [] for k, values in DIMENSIONS.items() for v in values}
    for voice, neutral in _voices(every):
        for (key, asked), got in found.items():
            style: SpeakingStyle = replace(NEUTRAL_STYLE, **{key: asked})  # type: ignore[arg-type]  # none of the keys is `whisper`
            got.append(getattr(measure(speak(neutral.text, apply_style(voice, style)), neutral), key))
    yield "| asked for | measured: median (10 % … 90 % of the voices) |"
    yield "|---|---|"
    for key in DIMENSIONS:
        cells = []
        for asked in DIMENSIONS[key]:
            low, middle, high = np.quantile(found[key, asked], SPREAD)
            cells.append(f"{asked:g} → {middle:.2f} ({low:.2f} … {high:.2f})")
        yield f"| {key} | {'; '.join(cells)} |"


def _voices(every: int) -> Iterator[tuple[Voice, Utterance]]:
    """Voices of espeak in both languages, each with a neutral reading."""
    for lang, text in TEXTS.items():
        for voice in [voice for voice in training_voices(lang) if voice.engine == "espeak"][1::every]:
            yield voice, speak(text, voice)


def _tried(voice: Voice, style: SpeakingStyle, neutral: Utterance) -> tuple[Measured, int]:
    """What the first reading measures, and how many it took until one was good; 0 if none was."""
    rng, measured = random.Random(voice.id), list[Measured]()

    def judge(spoken: Utterance) -> dict[str, float]:
        measured.append(measure(spoken, neutral))
        return {"style": style_error(style, measured[-1], Tolerance())}

    _, deviations = best_reading(
        ATTEMPTS, lambda n: speak(neutral.text, apply_style(voice, style, rng if n else None)), judge
    )
    return measured[0], len(measured) if deviations["style"] <= 1 else 0


def audit(every: int = EVERY) -> Iterable[str]:
    """Both tables."""
    yield from styles(every)
    yield ""
    yield from dimensions(every)


if __name__ == "__main__":
    print("\n".join(audit(*map(int, sys.argv[1:]))))
