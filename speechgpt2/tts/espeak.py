"""espeak-ng through its library, in process: audio, and the sample at which every word and phone starts.

The library is the one in the `espeakng-loader` wheel, else the system's. It keeps global state, so a process speaks one
utterance at a time; run more processes to go faster. Because of that state an utterance depends, by about a sample, on
the utterances before. A new process always gives the same result (alignment/isolated_espeak.py). espeak-ng is GPL-3: it
is an optional tool that is loaded at run time, never a part of this package.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechgpt2.errors import MissingDependency
from speechgpt2.tts import variants
from speechgpt2.tts.pinyin import Syllable, syllables
from speechgpt2.tts.utterance import Phone, Rendering, Voice, Word

MANDARIN = "cmn-latn-pinyin"

_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 0x1, 0x2, 0x8000  # options of espeak_Initialize
_CHARS_UTF8, _INLINE_PHONEMES = 0x1, 0x100  # flags of espeak_Synth
_RATE, _PITCH, _RANGE, _GAP = 1, 3, 4, 7  # espeak_PARAMETER
_STRESS = str.maketrans("", "", "ˈˌ")
_IPA_WITH_TIES = 0x2 | 0x80 | ord("^") << 8  # phoneme mode of espeak_TextToPhonemes: IPA, parts of a phoneme tied by ^
_TIED = re.compile(r"([ˈˌ]?)([^\Wˈˌ][ːʲ\u0303\u0329]*(?:\^[^\Wˈˌ][ːʲ\u0303\u0329]*)*)")
_VOWELS = frozenset("aeiouyɑɐɒæɔəɚɛɜɝɤɨɪøœɯʊʌɵ")


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Phoneme(NamedTuple):
    """A phoneme of `transcribe`: ``ˈ``, ``ˌ`` or nothing before it, and its parts in IPA: ("a", "ɪ")."""

    stress: str
    parts: tuple[str, ...]


class _Mark(NamedTuple):
    """An event of the library. `label` is None for a word, and the IPA for a phone ("" for silence)."""

    position: int  # 0-based character in the text
    sample: int
    label: str | None


class _Library:
    """The loaded library with its callback. Create it once per process."""

    def __init__(self) -> None:
        self._lib, data = _load()
        self._chunks: list[bytes] = []
        self._marks: list[_Mark] = []
        self._to_phonemes = self._lib.espeak_TextToPhonemes
        self._to_phonemes.restype = ctypes.c_char_p
        self._reseed = getattr(self._lib, "espeak_ng_SetRandSeed", None)  # since 1.52
        self._callback = _Callback(self._receive)  # kept: the library holds only a pointer
        self._start(data)

    def synthesize(self, text: str, voice: Voice) -> tuple[np.ndarray, list[_Mark]]:
        """Return int16 samples `[N]` at `sample_rate`, and the events in the order of time."""
        number = variants.variant_number(voice.name)
        if number is not None:
            variants.write_variant(number, self._data)
        if self._lib.espeak_SetVoiceByName(f"{voice.accent}+{voice.name}".encode()):
            raise ValueError(f"espeak-ng has no voice {voice.accent}+{voice.name}")
        settings = ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range), (_GAP, voice.gap))
        for parameter, value in settings:
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._chunks, self._marks = [], []
        if self._reseed is not None:  # without it the clock seeds the noise of fricatives
            self._reseed(ctypes.c_long(1))
        raw, flags = text.encode(), _CHARS_UTF8
        if voice.accent == MANDARIN:  # `Syllable.token` spells some syllables as phonemes
            flags |= _INLINE_PHONEMES
        self._lib.espeak_Synth(ctypes.c_char_p(raw), len(raw) + 1, 0, 1, 0, flags, None, None)
        return np.frombuffer(b"".join(self._chunks), np.int16), self._marks

    def phonemes(self, text: str, accent: str) -> list[str]:
        """Return the IPA of the text's words, with stress; ``^`` ties the parts of a phoneme."""
        if self._lib.espeak_SetVoiceByName(accent.encode()):
            raise ValueError(f"espeak-ng has no voice {accent}")
        buffer = ctypes.create_string_buffer(text.encode())
        remaining, words = ctypes.c_void_p(ctypes.addressof(buffer)), list[str]()
        while remaining.value:  # a call converts one clause
            words += self._to_phonemes(ctypes.byref(remaining), _CHARS_UTF8, _IPA_WITH_TIES).decode().split()
        return words

    def _start(self, data: bytes | None) -> None:
        flags = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
        self.sample_rate = self._lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, flags)
        if self.sample_rate <= 0:
            raise MissingDependency("the library of espeak-ng was found, but not its folder espeak-ng-data")
        self._lib.espeak_SetSynthCallback(self._callback)

    @cached_property
    def _data(self) -> Path:
        """The library's data folder, to add variants to. From the first use on it is a temporary copy."""
        original = ctypes.c_char_p()
        self._lib.espeak_Info(ctypes.byref(original))
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-")  # kept: the folder is deleted with its object
        data = variants.copy_data(Path((original.value or b"").decode()), Path(self._folder.name))
        self._lib.espeak_Terminate()
        self._start(str(data).encode())
        return data

    def _receive(self, wav: Any, count: int, events: Any) -> int:
        if wav and count > 0:
            self._chunks.append(ctypes.string_at(wav, 2 * count))
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            if event.type == _WORD:
                self._marks.append(_Mark(event.text_position - 1, event.sample, None))
            elif event.type == _PHONEME:
                label = event.id.string.decode("utf-8", "ignore").translate(_STRESS)
                self._marks.append(_Mark(event.text_position - 1, event.sample, label))
            index += 1
        return 0


def _load() -> tuple[ctypes.CDLL, bytes | None]:
    """Return the shared library and its data folder (None: the library's own default)."""
    try:
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path().encode()
    except (ImportError, OSError):
        pass
    try:
        return ctypes.CDLL("libespeak-ng.so.1"), None
    except OSError as error:
        raise MissingDependency("espeak-ng is missing: pip install 'speechgpt2[synthesis]'") from error


@cache
def _library() -> _Library:
    return _Library()


def render(text: str, voice: Voice) -> Rendering:
    """Speak English text, or Mandarin hanzi where `voice.accent` is `MANDARIN`.

    Raises:
        MissingDependency: espeak-ng, or pypinyin for Mandarin, is not installed.
        ValueError: there is no such voice, or a character has no reading.
    """
    library = _library()
    if voice.accent == MANDARIN:
        spoken = syllables(text)
        source = " ".join(s.token for s in spoken)
        texts = [s.char for s in spoken]
    else:
        spoken = []
        source = text
        texts = source.split()
    pcm, marks = library.synthesize(source, voice)
    spans = [match.span() for match in re.finditer(r"\S+", source)]
    phones, owners = _phones(marks, spans, len(pcm), library.sample_rate)
    words = _words(texts, phones, owners)
    if spoken:
        phones = _with_tones(phones, owners, spoken)
    return Rendering(pcm.astype(np.float32) / 32768, library.sample_rate, words, tuple(phones))


def transcribe(text: str, accent: str) -> list[tuple[str, list[Phoneme]]]:
    """Transcribe English text.

    espeak-ng joins some words ("of the"). A bar between words prevents that, and each is still read in its context. A
    number may be spoken as several words. Then each written word is transcribed alone, to count its spoken words.

    Returns:
        The written words, each with its phonemes.
    """
    library = _library()
    written = [word for word in text.split() if re.search(r"\w", word)]
    spoken, counts = library.phonemes(" | ".join(written), accent), [1] * len(written)
    if len(spoken) != len(written):
        alone = [library.phonemes(word, accent) for word in written]
        counts = [len(words) for words in alone]
        if sum(counts) != len(spoken):
            spoken = [word for words in alone for word in words]
    remaining = iter(spoken)
    return [(word, _tied("".join(next(remaining) for _ in range(n)))) for word, n in zip(written, counts)]


def _tied(ipa: str) -> list[Phoneme]:
    return [Phoneme(stress, tuple(parts.split("^"))) for stress, parts in _TIED.findall(ipa)]


def _phones(marks: list[_Mark], spans: list[tuple[int, int]], samples: int, rate: int) -> tuple[list[Phone], list[int]]:
    """Return the audible phones, and for each the index of its token in `spans`."""
    phones: list[Phone] = []
    owners: list[int] = []
    token = 0
    phone_marks = [m for m in marks if m.label is not None]
    ends = iter([m.sample for m in phone_marks[1:]] + [samples])
    for mark in marks:
        if mark.label is None:
            # At the end of a sentence the library sends a position outside every token.
            token = next((i for i, (a, b) in enumerate(spans) if a <= mark.position < b), token)
            continue
        end = next(ends)
        if mark.label and end > mark.sample:
            phones.append(Phone(mark.label, mark.sample / rate, end / rate))
            owners.append(token)
    return phones, owners


def _words(texts: list[str], phones: list[Phone], owners: list[int]) -> tuple[Word, ...]:
    """Return words with the times of their phones.

    espeak reads some pairs ("of the") as one word. The time of a pair is divided by the number of letters.
    """
    times: dict[int, tuple[float, float]] = {}
    for phone, owner in zip(phones, owners, strict=True):
        start = times[owner][0] if owner in times else phone.start
        times[owner] = (start, phone.end)
    words: list[Word] = []
    index = 0
    while index < len(texts):
        group_end = index + 1
        while group_end < len(texts) and group_end not in times:
            group_end += 1
        start, end = times.get(index, (0.0, 0.0))
        group = [re.sub(r"^\W+|\W+$", "", t) for t in texts[index:group_end]]
        letters = sum(map(len, group)) or 1
        for text in group:
            stop = start + (end - start) * len(text) / letters
            if text:
                words.append(Word(text, start, stop))
            start, letters = stop, max(1, letters - len(text))
        index = group_end
    return tuple(words)


def _with_tones(phones: list[Phone], owners: list[int], syllable_list: list[Syllable]) -> list[Phone]:
    """Add the tone of its syllable to every vowel; espeak's phones lack it."""
    return [
        phone._replace(label=phone.label + syllable_list[owner].pinyin[-1]) if _VOWELS & set(phone.label) else phone
        for phone, owner in zip(phones, owners, strict=True)
    ]
