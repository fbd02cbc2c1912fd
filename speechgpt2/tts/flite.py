"""flite 2.2 (English) through its libraries, in process: audio with the times of words and segments.

The command line prints the times of segments only; the library also knows to which word they belong. The libraries are
those of the system package `flite`.
"""

# ruff: noqa: SIM905 (a list of phones reads better as text)

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from speechgpt2.errors import MissingDependency
from speechgpt2.tts.utterance import Phone, Rendering, Voice, Word

VOICES = {
    "slt": "cmu_us_slt",
    "rms": "cmu_us_rms",
    "awb": "cmu_us_awb",
    "kal": "cmu_us_kal",
    "kal16": "cmu_us_kal16",
}

# ARPAbet to the IPA of espeak's en-us, so that both engines have the same labels.
_IPA = dict(
    pair.split(":", 1)
    for pair in (
        "aa:ɑː ae:æ ah:ʌ ax:ə ao:ɔː aw:aʊ ay:aɪ b:b ch:tʃ d:d dh:ð dx:ɾ eh:ɛ er:ɚ ey:eɪ f:f g:ɡ hh:h "
        "ih:ɪ iy:iː jh:dʒ k:k l:l m:m n:n ng:ŋ ow:oʊ oy:ɔɪ p:p r:ɹ s:s sh:ʃ t:t th:θ uh:ʊ uw:uː "
        "v:v w:w y:j z:z zh:ʒ"
    ).split()
)


def ipa(arpabet: str) -> str:
    """Convert a phone of the CMU voices to IPA."""
    return _IPA.get(arpabet, arpabet)


# Names of features. The library keeps the pointers, so the strings must not be freed.
_STRETCH, _SHIFT = b"duration_stretch", b"f0_shift"


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class _Library:
    """The functions of libflite that this module uses, with their types."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
            for name in ("usenglish", "cmulex"):
                ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MissingDependency("flite is missing: install the system package flite") from error
        pointer, string, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
        self.synthesize = self._function("flite_synth_text", pointer, string, pointer)
        self.wave = self._function("utt_wave", ctypes.POINTER(_Wave), pointer)
        self.delete = self._function("delete_utterance", None, pointer)
        self.set_feature = self._function("feat_set_float", None, pointer, string, number)
        self.string = self._function("ffeature_string", string, pointer, string)
        self.number = self._function("ffeature_float", number, pointer, string)
        self._relation = self._function("utt_relation", pointer, pointer, string)
        self._head = self._function("relation_head", pointer, pointer)
        self._next = self._function("item_next", pointer, pointer)
        self.first_daughter = self._function("item_daughter", pointer, pointer)
        self.last_daughter = self._function("item_last_daughter", pointer, pointer)
        self._lib.flite_init()

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._lib, name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def items(self, utterance: int, relation: bytes) -> Iterator[int]:
        """Yield the items of a relation ("Token", "Segment") in order."""
        item = self._head(self._relation(utterance, relation))
        while item:
            yield item
            item = self._next(item)


@cache
def _library() -> _Library:
    return _Library()


@cache
def _voice(name: str) -> int:
    """Return the pointer to a registered voice."""
    if name not in VOICES:
        raise ValueError(f"flite has no voice {name!r}; it has {', '.join(VOICES)}")
    try:
        library = ctypes.CDLL(f"libflite_{VOICES[name]}.so.1")
    except OSError as error:
        raise MissingDependency(f"flite's voice {name} is missing: install the system package flite") from error
    register = getattr(library, f"register_{VOICES[name]}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    return register(None)


def render(text: str, voice: Voice) -> Rendering:
    """Speak English text. `pitch` moves F0 by up to half an octave; range and gap have no effect.

    Raises:
        MissingDependency: flite is not installed.
        ValueError: flite has no such voice.
    """
    library, pointer = _library(), _voice(voice.name)
    features = ctypes.cast(pointer, ctypes.POINTER(_Voice)).contents.features
    library.set_feature(features, _STRETCH, 175 / voice.rate)
    library.set_feature(features, _SHIFT, 2 ** ((voice.pitch - 50) / 100))
    utterance = library.synthesize(text.encode("ascii", "ignore"), pointer)
    try:
        wave = library.wave(utterance).contents
        pcm = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32768
        words, phones = _words(library, utterance, text), _phones(library, utterance)
        return Rendering(pcm, wave.sample_rate, words, phones)
    finally:
        library.delete(utterance)


def _words(library: _Library, utterance: int, text: str) -> tuple[Word, ...]:
    """Return one word per written token; a token such as "twenty-one" has several spoken words."""
    words = []
    for token in library.items(utterance, b"Token"):
        first, last = library.first_daughter(token), library.last_daughter(token)
        if first:
            name = library.string(token, b"name").decode()
            start = library.number(first, b"R:SylStructure.daughter1.daughter1.R:Segment.p.end")
            end = library.number(last, b"R:SylStructure.daughtern.daughtern.R:Segment.end")
            words.append(Word(name, start, end))
    written = [w for w in (re.sub(r"^\W+|\W+$", "", t) for t in text.split()) if w]
    if len(written) != len(words):
        return tuple(words)
    return tuple(word._replace(text=name) for word, name in zip(words, written, strict=True))


def _phones(library: _Library, utterance: int) -> tuple[Phone, ...]:
    phones, start = [], 0.0
    for segment in library.items(utterance, b"Segment"):
        name, end = library.string(segment, b"name").decode(), library.number(segment, b"end")
        if name != "pau" and end > start:
            phones.append(Phone(ipa(name), start, end))
        start = end
    return tuple(phones)
