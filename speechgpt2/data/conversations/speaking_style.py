"""Speaking styles: engine settings for a style, and the measured style.

An engine does not always follow its settings (a rate is limited, a whisper stays voiced). So a line with a style is
spoken a second time in the neutral style, and the difference is measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechgpt2.curriculum.texts import read
from speechgpt2.data.conversations.script import STYLES, SpeakingStyle
from speechgpt2.dsp.world_pitch import F0_HOP, track_pitch
from speechgpt2.tts.utterance import Utterance, Voice

WHISPERER = "whisper"  # espeak's unvoiced variant
SEMITONES_PER_STEP = 0.16  # of espeak's pitch setting around its middle, measured
VOICED_SHARE = 0.25  # largest voiced share of the loud 10 ms steps of a whisper
FAINT_DB = -25.0  # relative to the loudest step: quieter steps do not count


@dataclass(frozen=True)
class MeasuredStyle:
    """The style of a reading, relative to the neutral one, in the units of `SpeakingStyle`.

    `voiced` is the share of the reading's own loud 10 ms steps that are voiced.
    """

    rate: float
    pitch: float
    range: float
    loudness: float
    voiced: float


@dataclass(frozen=True)
class Tolerance:
    """The largest difference of measured and requested style: factors of `rate` and `range`, else in their units."""

    rate: float = 1.2
    pitch: float = 2.0
    range: float = 2.5
    loudness: float = 3.0


def apply_style(voice: Voice, style: SpeakingStyle, rng: random.Random | None = None) -> Voice:
    """Return the voice's settings for a style; with `rng` a random variation of them."""
    nudge = (lambda low, high: rng.uniform(low, high)) if rng else (lambda low, high: (low + high) / 2)
    rate = round(voice.rate * style.rate * nudge(0.93, 1.07))
    pitch = round(voice.pitch + style.pitch / SEMITONES_PER_STEP * nudge(0.8, 1.2))
    lively = round(voice.pitch_range * style.range * nudge(0.85, 1.15))
    return replace(
        voice, name=WHISPERER if style.whisper and voice.engine == "espeak" else voice.name, rate=rate,
        pitch=min(100, max(0, pitch)), pitch_range=min(100, max(0, lively)), gain=voice.gain + style.loudness,
        style=style_instruction(style, voice.lang), seed=rng.getrandbits(16) if rng else voice.seed,
    )  # fmt: skip


def style_instruction(style: SpeakingStyle, lang: str) -> str:
    """Return the instruction for a style, for engines that take one; "" for a style without a name."""
    name = next((name for name, named in STYLES.items() if named == style), "")
    return read("speaking_styles")[lang][name] if name else ""


def measure(spoken: Utterance, neutral: Utterance) -> MeasuredStyle:
    """Measure how `spoken` differs from `neutral`, the same words by the same voice. Raises `MissingDependency`."""
    styled, plain = _melody(spoken.pcm), _melody(neutral.pcm)
    both = len(styled.semitones) and len(plain.semitones)
    return MeasuredStyle(
        rate=_length(neutral) / _length(spoken),
        pitch=float(np.median(styled.semitones) - np.median(plain.semitones)) if both else 0.0,
        range=_spread(styled.semitones) / max(_spread(plain.semitones), 0.1) if both else 1.0,
        loudness=styled.level - plain.level,
        voiced=styled.voiced,
    )


def style_error(target: SpeakingStyle, measured: MeasuredStyle, tolerance: Tolerance) -> float:
    """Return the largest deviation of the measured style from the target, in tolerances; up to 1 is good."""
    if target.whisper:
        return measured.voiced / VOICED_SHARE
    deviations = [
        abs(np.log(measured.rate / target.rate)) / np.log(tolerance.rate),
        abs(measured.pitch - target.pitch) / tolerance.pitch,
        abs(measured.loudness - target.loudness) / tolerance.loudness,
    ]
    if target.range != 1.0:
        deviations.append(abs(np.log(max(measured.range, 1e-3) / target.range)) / np.log(tolerance.range))
    return float(max(deviations))


def _length(utterance: Utterance) -> float:
    """Seconds from the first word's start to the last one's end."""
    return max(utterance.words[-1].end - utterance.words[0].start, 1e-3)


class _Melody(NamedTuple):
    """Pitch of the voiced 10 ms steps in semitones above 1 Hz; of the loud steps, level in dB and the voiced share."""

    semitones: np.ndarray
    level: float
    voiced: float


def _melody(pcm: np.ndarray) -> _Melody:
    hertz = track_pitch(pcm)
    power = np.square(pcm[: len(pcm) // F0_HOP * F0_HOP].reshape(-1, F0_HOP)).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (FAINT_DB / 10))
    level = float(10 * np.log10(power[loud].mean()))
    return _Melody(12 * np.log2(hertz[hertz > 0]), level, float((hertz[loud] > 0).mean()))


def _spread(semitones: np.ndarray) -> float:
    """Half the distance of the 10th and 90th percentile."""
    return float(np.subtract(*np.quantile(semitones, (0.9, 0.1)))) / 2
