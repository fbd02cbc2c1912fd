"""Sets of voices for a corpus: voices that ask, voices that answer, and held-out voices.

classic   espeak-ng and flite, with which the shipped `mini` was trained
natural   Kokoro's voices, single and mixed; some English questions are by espeak-ng and flite
askers    the voices of `classic` for questions only: replies are not spoken, but the speakers are imitated
"""

# ruff: noqa: SIM905 (lists of names read better as text)

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from speechgpt2.errors import UserError
from speechgpt2.tts import kokoro
from speechgpt2.tts.voices import ASSISTANT_VOICES, HELD_OUT_VOICES, Voice, draw_voice

KOKORO_HELD_OUT = {"en": "af_kore am_michael bf_emma bm_lewis".split(), "zh": "zf_xiaoyi zm_yunyang".split()}
NATIVE = {"en": "ab", "zh": "z"}  # first letters of the names of voices that speak the language without an accent
_RATES = (140, 220)  # speeds .8 to 1.25
_FORMANT_SHARE = {"en": 0.1, "zh": 0.0}  # draws of the natural set that are espeak-ng's or flite's
_MIXED = 0.4  # natural draws that are mixtures of two or three voices
_FOREIGN = 0.1  # single natural voices that are those of another language
_UNCLEAR = ("zf_xiaoni",)  # the character error rate of a recogniser is .46, and .05 to .12 for other voices


@dataclass(frozen=True)
class VoiceSet:
    """The voices of a corpus, by language ("en", "zh").

    Attributes:
        assistant: The voices that answer; the first is the default. Empty if replies are not spoken.
        held_out: The voices of the test split. `draw` returns none of them, alone or in a mixture.
        draw: Draws a training voice with random settings.
        imitated: The engines whose speakers the model learns to imitate.
    """

    assistant: Mapping[str, tuple[Voice, ...]]
    held_out: Mapping[str, tuple[Voice, ...]]
    draw: Callable[[str, random.Random], Voice]
    imitated: tuple[str, ...] = ()


def voice_set(name: str) -> VoiceSet:
    """Return the set of voices with this name.

    Raises:
        UserError: There is no such set.
    """
    if name not in VOICE_SETS:
        raise UserError(f"no set of voices {name!r}; there are {', '.join(VOICE_SETS)}")
    return VOICE_SETS[name]


def draw_natural(lang: str, rng: random.Random) -> Voice:
    """Draw a voice of Kokoro: half of them single and native, the others mixed or with an accent.

    In a mixture a native voice has the largest weight, since an accent changes the Mandarin tones.
    """
    excluded = {*_UNCLEAR, *(name for names in KOKORO_HELD_OUT.values() for name in names)}
    available = [name for name in kokoro.VOICES if name not in excluded]
    native = [name for name in available if name[0] in NATIVE[lang]]
    if rng.random() < _MIXED:
        names = rng.sample(available, rng.choice((1, 1, 2)))
        if lang == "en" and rng.random() < 0.5:
            names = rng.sample(native, len(names))
        names = [rng.choice([name for name in native if name not in names]), *names]
        weights = sorted((rng.randint(20, 80) for _ in names), reverse=True)
        name = kokoro.mixture(dict(zip(names, weights, strict=True)))
    elif rng.random() < _FOREIGN / (1 - _MIXED):
        name = rng.choice([name for name in available if name not in native])
    else:
        name = rng.choice(native)
    return Voice("kokoro", name, lang, rate=rng.randint(*_RATES), gain=round(rng.uniform(-8, 4), 1))


def _draw_mostly_natural(lang: str, rng: random.Random) -> Voice:
    return (draw_voice if rng.random() < _FORMANT_SHARE[lang] else draw_natural)(lang, rng)


def _kokoro(lang: str, names: str) -> tuple[Voice, ...]:
    return tuple(Voice("kokoro", name, lang) for name in names.split())


VOICE_SETS = {
    "classic": VoiceSet({lang: (voice,) for lang, voice in ASSISTANT_VOICES.items()}, HELD_OUT_VOICES, draw_voice),
    "natural": VoiceSet(
        {"en": _kokoro("en", "af_heart am_eric"), "zh": _kokoro("zh", "zf_xiaobei zm_yunxi")},
        {lang: _kokoro(lang, " ".join(names)) for lang, names in KOKORO_HELD_OUT.items()},
        _draw_mostly_natural,
        ("kokoro",),
    ),
    "askers": VoiceSet({"en": (), "zh": ()}, HELD_OUT_VOICES, draw_voice, ("espeak", "flite")),
}
