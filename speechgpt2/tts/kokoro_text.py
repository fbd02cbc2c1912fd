"""Converts text to the symbols of Kokoro-82M, with the word and the phone of each.

Kokoro reads IPA with some letters of its own ("I" for the vowel of "my"), stress marks before a vowel, arrows for
Mandarin tones, and punctuation. English phonemes come from espeak-ng, Mandarin ones from pypinyin and misaki, with
which the model was trained (misaki's EN_PHONES.md lists the letters).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from speechgpt2.extras import require
from speechgpt2.tts import espeak

PAD = 0  # the id before the first symbol and after the last

# First id of a run of symbols with consecutive ids.
_RUNS = {
    1: ";:,.!?", 9: '—…"()“” \u0303ʣʥʦʨᵝꭧAI', 31: "O", 33: "Q", 35: "ST", 39: "W", 41: "Yᵊabcdef",
    50: "hijklmnopqrstuvwxyzɑɐɒæ", 75: "βɔɕç", 80: "ɖðʤə", 85: "ɚɛɜ", 90: "ɟ", 92: "ɡ", 99: "ɥ", 101: "ɨɪʝ",
    110: "ɯɰŋɳɲɴø", 118: "ɸθœ", 123: "ɹ", 125: "ɾɻ", 128: "ʁɽʂʃʈʧ", 135: "ʊʋ", 138: "ʌɣɤ", 142: "χʎ", 147: "ʒʔ",
    156: "ˈˌː", 162: "ʰ", 164: "ʲ", 169: "↓", 171: "→↗↘", 177: "ᵻ",
}  # fmt: skip
SYMBOLS = {symbol: first + i for first, run in _RUNS.items() for i, symbol in enumerate(run)}

# espeak-ng's English phonemes in Kokoro's letters, where they differ.
_ENGLISH = {
    "aɪ": "I", "aʊ": "W", "eɪ": "A", "ɔɪ": "Y", "dʒ": "ʤ", "tʃ": "ʧ", "aɪɚ": "Iəɹ", "aɪə": "Iə", "aʊɚ": "Wəɹ",
    "aʊə": "Wə", "əl": "ᵊl", "n\u0329": "ᵊn", "ɚ": "əɹ", "ɐ": "ə", "ɾ": "T", "ʔ": "t", "r": "ɹ", "x": "k", "ç": "k",
    "ɬ": "l", "o": "ɔ", "e": "A",
}  # fmt: skip
_AMERICAN = {**_ENGLISH, "oʊ": "O", "əʊ": "O", "ɜː": "ɜɹ"}
_BRITISH = {**_ENGLISH, "oʊ": "Q", "əʊ": "Q", "eə": "ɛː", "iə": "ɪə", "æ": "a"}
_ACCENTS = {False: "en-us", True: "en"}  # espeak-ng's name of British English is "en"

_VOWELS = "aeiouyəɤɛʊɨɚɔɪ"
_SYLLABLE = re.compile(rf"[{_VOWELS}]+[→↗↓↘]?|.ʰ?")
_TONES = {"→": "1", "↗": "2", "↓": "3", "↘": "4"}
_NEUTRAL = "5"
_HANZI = re.compile(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]")
_PAUSES = {"，": ",", "、": ",", "；": ";", "：": ":", "。": ".", "！": "!", "？": "?"} | {c: c for c in ";:,.!?—…"}


class Unit(NamedTuple):
    """One phone: its label (as in `tts.utterance.Phone`) and the symbols that stand for it."""

    label: str
    symbols: str


class Token(NamedTuple):
    """A written word (English) or one character (Mandarin), its phones, and the symbols that follow them."""

    text: str
    units: tuple[Unit, ...]
    after: str


def english(text: str, british: bool) -> list[Token]:
    """Transcribe English text.

    Raises:
        MissingDependency: espeak-ng is not installed.
    """
    tokens = []
    for word, phonemes in espeak.transcribe(text, _ACCENTS[british]):
        stops = [c for c in word[len(word.rstrip("\"')”’,.;:!?…—-")) :] if c in _PAUSES]
        units = tuple(_english_unit(phoneme, british) for phoneme in phonemes)
        plain = re.sub(r"^\W+|\W+$", "", word)
        tokens.append(Token(plain, tuple(unit for unit in units if unit.symbols), "".join(stops[:1]) + " "))
    return tokens


def _english_unit(phoneme: espeak.Phoneme, british: bool) -> Unit:
    table = _BRITISH if british else _AMERICAN
    label = "".join(phoneme.parts)
    symbols = table.get(label) or "".join(table.get(part, part) for part in phoneme.parts)
    if not british:
        symbols = symbols.replace("ː", "")  # American vowels have no length in Kokoro's spelling
    return Unit(label, "".join(c for c in phoneme.stress + symbols if c in SYMBOLS))


def mandarin(text: str) -> list[Token]:
    """Transcribe Mandarin text; a space follows each word, as in the model's training.

    Raises:
        ValueError: A character has no Mandarin reading. Latin words and digits must be written out first.
        MissingDependency: A package that reads hanzi is not installed.
    """
    words, readings_of, ipa_of = _readers()
    tokens: list[Token] = []
    for segment in _HANZI.findall(text):
        if "\u4e00" <= segment[0] <= "\u9fff":
            for word in words(segment):
                units = [_mandarin_units(ipa_of(reading)) for reading in readings_of(word)]
                ends = [""] * (len(word) - 1) + [" "]
                tokens += [Token(*fields) for fields in zip(word, units, ends, strict=True)]
        elif segment in _PAUSES:
            if tokens:
                tokens[-1] = tokens[-1]._replace(after=_PAUSES[segment] + " ")
        elif segment.isalnum():
            raise ValueError(f"no Mandarin reading for {segment!r} in {text!r}")
    return tokens


def _mandarin_units(ipa: str) -> tuple[Unit, ...]:
    """Return the phones of one syllable; the label of the vowel has the tone: ``a3``."""
    ipa = "".join(c for c in ipa if c in SYMBOLS)
    tone = next((_TONES[c] for c in ipa if c in _TONES), _NEUTRAL)
    units = []
    for symbols in _SYLLABLE.findall(ipa):
        label = symbols.rstrip("→↗↓↘")
        units.append(Unit(label + tone if symbols[0] in _VOWELS else label, symbols))
    return tuple(units)


def _readers():
    """Return functions: hanzi to words, a word to its pinyin syllables, a pinyin syllable to IPA."""
    jieba, pypinyin = require("jieba", "kokoro"), require("pypinyin", "kokoro")
    misaki = require("misaki.zh", "kokoro")
    jieba.setLogLevel("WARNING")
    tone3 = {"style": pypinyin.Style.TONE3, "neutral_tone_with_five": True}
    return jieba.lcut, lambda word: pypinyin.lazy_pinyin(word, **tone3), misaki.ZHG2P.py2ipa
