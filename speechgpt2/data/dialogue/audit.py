"""Manners asked for against manners measured, over many voices: the table in docs/synthesize.md.

python -m speechgpt2.data.dialogue.audit
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from speechgpt2.data.dialogue.manner import Measured, Tolerance, drive, error, measure
from speechgpt2.data.dialogue.script import MANNERS
from speechgpt2.data.voices import speak, training_voices

TEXTS = {"en": "I would like the soup and a glass of water, please.", "zh": "我要一碗面条，再来一杯茶。"}
EVERY = 5  # of the training voices


def audit() -> Iterable[str]:
    """Rows of a Markdown table: asked → median measured of each dimension, and the share within the tolerance."""
    found: dict[str, list[tuple[Measured, float]]] = {name: [] for name in MANNERS}
    for lang, text in TEXTS.items():
        voices = [voice for voice in training_voices(lang) if voice.engine == "espeak"]
        for voice in voices[1::EVERY]:
            neutral = speak(text, voice)
            for name, style in MANNERS.items():
                got = measure(speak(text, drive(voice, style)), neutral)
                found[name].append((got, error(style, got, Tolerance())))
    yield "| manner | rate | pitch, semitones | range | loudness, dB | voiced | within tolerance |"
    yield "|---|---|---|---|---|---|---|"
    for name, rows in found.items():
        style = MANNERS[name]
        middle = {key: float(np.median([getattr(got, key) for got, _ in rows])) for key in vars(rows[0][0])}
        pairs = [f"{getattr(style, key):g} → {middle[key]:.2f}" for key in ("rate", "pitch", "range", "loudness")]
        share = float(np.mean([fault <= 1 for _, fault in rows]))
        yield f"| {name} | {' | '.join(pairs)} | {middle['voiced']:.2f} | {share:.2f} of {len(rows)} |"


if __name__ == "__main__":
    print("\n".join(audit()))
