"""Does the model reject input without a question? Silence, noise, music and languages that it does not know.

A rejection is an empty reply, or the answer that it did not understand.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechgpt2.eval.answers import answer_turn
from speechgpt2.eval.judges import Wave
from speechgpt2.eval.report import column
from speechgpt2.tts import voices
from speechgpt2.tts.voices import HELD_OUT_VOICES, Voice
from speechgpt2.types import SAMPLE_RATE, Turn

REFUSAL = re.compile(
    r"\b(?:did not|didn't|do not|don't|could not|couldn't) (?:understand|catch)|没有?听[懂清]|听不[懂清]"
)
FOREIGN = {  # none is a training sentence, and two of the languages are not trained (curriculum/texts/limits.yaml)
    "cs": ("Dobrý den, kde je nádraží?", "Chtěl bych sklenici vody."),
    "de": ("Guten Tag, wann fährt der nächste Zug?", "Bitte geben Sie mir ein Stück Brot."),
    "es": ("Buenos días, ¿cuándo sale el tren?", "Me gustaría comprar un billete."),
    "nl": ("Goedemorgen, hoe laat is het?", "Ik wil graag een glas water."),
    "ru": ("Здравствуйте, когда отходит поезд?", "Дайте мне, пожалуйста, немного хлеба."),
}
PER_KIND = 12
LOUDEST, QUIETEST = -20.0, -45.0  # dBFS of noise and music
NOTES = 261.6 * 2 ** (np.arange(0, 13) / 12)  # Hz, an octave from C4


@dataclass(frozen=True)
class RejectionRow:
    """How often one kind of input without a question was rejected."""

    kind: str = column("input")
    n: int = column("n", "d")
    rejected: float = column("rejected ↑", ".2f")


def is_rejection(text: str) -> bool:
    """Whether a reply is empty, or says that the model did not understand."""
    return not re.search(r"\w", text) or bool(REFUSAL.search(text.lower().replace("’", "'")))


def draw_inputs(per_kind: int = PER_KIND, seed: int = 0) -> dict[str, list[Wave]]:
    """Draw `per_kind` inputs [N] at 24 kHz of each kind.

    Raises:
        UserError: espeak-ng, which speaks the other languages, is not installed.
    """
    generators: Mapping[str, Callable[[np.random.Generator], Wave]] = {
        "silence": lambda rng: _level(rng.normal(size=_samples(rng)), -75.0),
        "noise": lambda rng: _level(_noise(rng), rng.uniform(QUIETEST, LOUDEST)),
        "music": lambda rng: _level(_music(rng), rng.uniform(QUIETEST, LOUDEST)),
    }
    waves = {
        kind: [generate(np.random.default_rng([seed, number])) for number in range(per_kind)]
        for kind, generate in generators.items()
    }
    rng = random.Random(f"foreign/{seed}")
    speakers = [voice.name for voice in HELD_OUT_VOICES["zh"]]
    spoken = [(lang, rng.choice(FOREIGN[lang]), rng.choice(speakers)) for lang in _cycle(sorted(FOREIGN), per_kind)]
    foreign = [voices.speak(text, Voice("espeak", name, "en", lang)).pcm for lang, text, name in spoken]
    return {**waves, "another language": foreign}


def rejection_rows(
    model: Any, inputs: Mapping[str, Sequence[Wave]], advance: Callable[[], Any] = lambda: None
) -> list[RejectionRow]:
    """Send every input to `model` as a spoken turn, and count the rejections.

    Args:
        model: A `SpeechGPT`.
        inputs: Waves [N] at 24 kHz by kind.
        advance: Called after each input.
    """
    rows = []
    for kind, waves in inputs.items():
        rejected = []
        for wave in waves:
            rejected.append(is_rejection(answer_turn(model, Turn.user(speech=wave), "s2t").text))
            advance()
        rows.append(RejectionRow(kind, len(rejected), float(np.mean(rejected))))
    return rows


def _cycle(items: Sequence[str], n: int) -> list[str]:
    return [items[i % len(items)] for i in range(n)]


def _samples(rng: np.random.Generator) -> int:
    return int(rng.uniform(1.0, 3.0) * SAMPLE_RATE)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency by a random exponent: 0 is white, 2 is brown."""
    spectrum = np.fft.rfft(rng.normal(size=_samples(rng)))
    return np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** (rng.uniform(0.0, 2.0) / 2))


def _music(rng: np.random.Generator) -> np.ndarray:
    """Chords of three decaying notes with harmonics, three a second."""
    time = np.arange(SAMPLE_RATE // 3) / SAMPLE_RATE
    orders = np.arange(1, 6)[:, None]
    chords = [
        sum((np.sin(2 * np.pi * note * orders * time) / orders**1.5).sum(0) for note in rng.choice(NOTES, 3))
        * np.exp(-3 * time)
        for _ in range(max(3, _samples(rng) // len(time)))
    ]
    return np.concatenate(chords)


def _level(pcm: np.ndarray, dbfs: float) -> Wave:
    """Scale to an RMS level; peaks stay below full scale."""
    scale = 10 ** (dbfs / 20) / np.sqrt(np.mean(np.square(pcm)))
    return np.clip(pcm * scale, -1.0, 1.0).astype(np.float32)
