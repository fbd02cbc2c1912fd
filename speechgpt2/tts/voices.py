"""The voices of training, the held-out voices, the voices of the assistant, and `speak`.

A speaker is a voice of an engine; a `Voice` is a speaker with settings. Held-out speakers are in no training data, with
any setting or accent.
"""

# ruff: noqa: SIM905 (lists of names read better as text)

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import soxr

from speechgpt2.dsp.levels import active_span, normalise_level
from speechgpt2.tts import variants
from speechgpt2.tts.alignment.align import align_speech
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.tts.engines import ENGINES
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Phone, Rendering, Utterance, Voice, Word
from speechgpt2.types import SAMPLE_RATE

__all__ = [
    "ASSISTANT_VOICES", "HELD_OUT_VOICES", "Phone", "Utterance", "Voice", "Word",
    "draw_voice", "speak", "training_voices", "vary_voice",
]  # fmt: skip

# Variants of espeak that sound human. Near-duplicates and robots are left out.
_MALE = (
    *"Alex Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Mario Michael Mike Nguyen RicishayMax adam antonio".split(),
    *"benjamin boris david ed edward fast grandpa gustave iven2 iven4 john klatt3 klatt5 m1 m2 m3 m5 m6 m7".split(),
    *"max michel miguel norbert pablo paul pedro quincy sandro travis victor".split(),
    "Mr serious",
)
_FEMALE = "Andrea Annie anika belinda f1 f2 f3 f5 steph".split()
_ODD = "croak klatt2 announcer Storm whisper whisperf".split()  # creaky, breathy, unvoiced: rarely drawn
_HELD_OUT = "f4 linda Alicia grandma shelby m4 m8 Lee robert marcelo".split()
_ASSISTANT_ZH = "f2"

# Names of espeak voices; "en" is British.
_ACCENTS = ("en-us", "en-us", "en-us", "en", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")
_FLITE_TRAINING = ("kal", "kal16")
_FLITE_USERS = (*_FLITE_TRAINING, "slt", "slt")  # also the assistant's speaker, which augmentation changes
_DRAWN = "drawn"  # random variants of espeak (variants.py)
_GROUPS: dict[str, Sequence[str]] = {
    "male": _MALE, "female": _FEMALE, "odd": _ODD, _DRAWN: (), "flite": _FLITE_USERS,
}  # fmt: skip
_SHARES = {"en": (16, 16, 3, 38, 27), "zh": (22, 22, 4, 52, 0)}  # of the groups, per cent
_SPEAKERS = 1_000_000  # numbers that random variants are drawn from
_RATES = {"en": (130, 210), "zh": (155, 250)}  # words per minute; at 200 Mandarin has 3.8 syllables a second

ASSISTANT_VOICES: dict[str, Voice] = {
    "en": Voice("flite", "slt", "en", rate=175),
    "zh": Voice("espeak", _ASSISTANT_ZH, "zh", MANDARIN, rate=200, pitch=52, pitch_range=75),
}

HELD_OUT_VOICES: dict[str, tuple[Voice, ...]] = {
    "en": (
        *(Voice("espeak", name, "en", ("en-us", "en")[i % 2]) for i, name in enumerate(_HELD_OUT)),
        Voice("flite", "rms", "en"),
        Voice("flite", "awb", "en"),
    ),
    "zh": tuple(Voice("espeak", name, "zh", MANDARIN, rate=195) for name in _HELD_OUT),
}


def training_voices(lang: str) -> tuple[Voice, ...]:
    """Return every training speaker of a language ("en", "zh") once, at neutral settings, without the assistant's."""
    names = [*_MALE, *_FEMALE, *_ODD]
    if lang == "zh":
        return tuple(Voice("espeak", name, "zh", MANDARIN) for name in names if name != _ASSISTANT_ZH)
    if lang == "en":
        espeak = (Voice("espeak", name, "en", _ACCENTS[i % len(_ACCENTS)]) for i, name in enumerate(names))
        return (*espeak, *(Voice("flite", name, "en") for name in _FLITE_TRAINING))
    raise ValueError(f"no voices for language {lang!r}; there are 'en' and 'zh'")


def draw_voice(lang: str, rng: random.Random) -> Voice:
    """Draw a speaker for training, with random settings; female voices are as frequent as male ones.

    About half of the speakers are random variants (variants.py). Settings cover slow to fast speech, and flat to lively
    intonation.
    """
    group = rng.choices(list(_GROUPS), weights=_SHARES[lang])[0]
    if group == _DRAWN:
        name = variants.variant_name(rng.randrange(_SPEAKERS))
    else:
        name = rng.choice([n for n in _GROUPS[group] if lang == "en" or n != _ASSISTANT_ZH])
    rate, pitch, gain = rng.randint(*_RATES[lang]), rng.randint(30, 70), round(rng.uniform(-8, 4), 1)
    if group == "flite":
        return Voice("flite", name, lang, rate=rate, pitch=pitch, gain=gain)
    accent = MANDARIN if lang == "zh" else rng.choice(_ACCENTS)
    gap = rng.choice((0, 0, 0, 1, 2, 4))
    return Voice("espeak", name, lang, accent, rate, pitch, rng.randint(25, 95), gap, gain)


def vary_voice(voice: Voice, rng: random.Random) -> Voice:
    """Return the same speaker with slightly different settings: rate ±12 %, a little pitch, pauses, ±3 dB.

    A synthesiser is deterministic. A model would memorise the only rendering of a sentence, so no sentence should be
    rendered twice in the same way.
    """
    if voice.engine == "kokoro":  # it has no other settings
        rate, gain = voice.rate * rng.uniform(0.88, 1.12), voice.gain + rng.uniform(-3, 3)
        return replace(voice, rate=round(rate), gain=round(gain, 1))
    return replace(
        voice,
        rate=round(voice.rate * rng.uniform(0.88, 1.12)),
        pitch=min(100, max(0, voice.pitch + rng.randint(-4, 4))),
        pitch_range=min(100, max(0, voice.pitch_range + rng.randint(-12, 12))),
        gap=voice.gap + rng.choice((0, 0, 1, 2)),
        gain=round(voice.gain + rng.uniform(-3, 3), 1),
    )


def speak(text: str, voice: Voice) -> Utterance:
    """Synthesise a text.

    Args:
        text: English, or Mandarin in hanzi with punctuation.
        voice: the speaker and the settings.

    Returns:
        The utterance at 24 kHz, with silence trimmed to 50 ms, at the voice's level. If the engine returns no
        times, they come from forced alignment.

    Raises:
        ValueError: the text gives no audio, or the audio does not contain the text.
        MissingDependency: the engine is not installed.
    """
    engine = ENGINES[voice.engine]
    rendering = engine.render(text, voice)
    pcm = rendering.pcm
    if rendering.sample_rate != SAMPLE_RATE and len(pcm):
        pcm = soxr.resample(pcm, rendering.sample_rate, SAMPLE_RATE, quality="HQ")
    span = active_span(pcm)
    if span is None:
        raise ValueError(f"{voice.speaker} returned no audio for {text!r}")
    if not rendering.words and not engine.exact_times:
        rendering = _aligned(rendering, pcm, text, voice)
    pcm = normalise_level(pcm[span[0] : span[1]], voice.gain)
    words, phones = _shift(rendering, span[0] / SAMPLE_RATE, len(pcm) / SAMPLE_RATE)
    return Utterance(pcm, text, voice.lang, voice, words, phones)


def _aligned(rendering: Rendering, pcm: np.ndarray, text: str, voice: Voice) -> Rendering:
    """Add the times of words and phones by forced alignment with the audio, `pcm [N]` at 24 kHz."""
    try:
        alignment, _ = align_speech(pcm.astype(np.float32), text, voice.lang)
    except Unalignable as error:
        raise ValueError(f"{voice.speaker}: {text!r} is not in the audio ({error})") from None
    return replace(rendering, words=alignment.words, phones=alignment.phones)


def _shift(rendering: Rendering, offset: float, duration: float) -> tuple[tuple[Word, ...], tuple[Phone, ...]]:
    """Move times `offset` seconds earlier, and clip them to the trimmed audio."""

    def at(time: float) -> float:
        shifted = time - offset
        return round(0.0 if shifted < 0.0 else min(shifted, duration), 4)

    words = tuple([Word(text, at(start), at(end)) for text, start, end in rendering.words])
    phones = [Phone(label, at(start), at(end)) for label, start, end in rendering.phones]
    return words, tuple([phone for phone in phones if phone.end > phone.start])
