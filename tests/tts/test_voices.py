"""Voices: exact times, one word per character in Mandarin, variation, and who may be heard in training."""

from __future__ import annotations

import random

import numpy as np
import pytest

from speechgpt2.tts.pinyin import syllables
from speechgpt2.tts.utterance import Utterance
from speechgpt2.tts.voices import (
    ASSISTANT_VOICES,
    HELD_OUT_VOICES,
    Voice,
    draw_voice,
    speak,
    training_voices,
    vary_voice,
)
from speechgpt2.types import SAMPLE_RATE
from tests import needs

ENGLISH = "Of the three, one is twenty-one. I don't know it."
MANDARIN = "银行行长，看见熊猫了吗？"
VOICES = [Voice("espeak", "m3", "en", "en-us"), ASSISTANT_VOICES["en"], ASSISTANT_VOICES["zh"]]


@pytest.fixture(params=[pytest.param(voice, marks=needs.voice(voice), id=voice.speaker) for voice in VOICES])
def utterance(request) -> Utterance:
    voice = request.param
    return speak(MANDARIN if voice.lang == "zh" else ENGLISH, voice)


def test_words_are_the_written_words(utterance):
    if utterance.lang == "zh":
        expected = [c for c in MANDARIN if c not in "，？"]
    else:
        expected = ENGLISH.replace(",", "").replace(".", "").split()
    assert [w.text for w in utterance.words] == expected


def test_times_are_monotone_and_inside_the_audio(utterance):
    for spans in (utterance.words, utterance.phones):
        edges = [t for span in spans for t in (span.start, span.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0 and edges[-1] <= utterance.duration
        assert all(span.end > span.start for span in spans)


def test_gaps_between_phones_are_quiet(utterance):
    """The times belong to this audio: what lies between phones holds little of the energy."""
    sounding = np.zeros(len(utterance.pcm), bool)
    for phone in utterance.phones:
        sounding[int(phone.start * SAMPLE_RATE) : int(phone.end * SAMPLE_RATE)] = True
    power = np.square(utterance.pcm)
    assert (~sounding).sum() > 0.02 * len(sounding)
    assert power[~sounding].mean() < 0.02 * power[sounding].mean()


def test_audio_is_trimmed_levelled_and_24_khz(utterance):
    assert utterance.pcm.dtype == np.float32
    assert np.abs(utterance.pcm).max() <= 0.95
    assert utterance.words[0].start < 0.15 and utterance.duration - utterance.words[-1].end < 0.15


@needs.extra("synthesis", "pypinyin")
def test_polyphones_and_syllables_unknown_to_espeak():
    assert [s.pinyin for s in syllables("银行，行走")] == ["yin2", "hang2", "xing2", "zou3"]
    assert syllables("熊。")[0].token == "[[S;'yu35N]]."
    with pytest.raises(ValueError, match="W"):
        syllables("用WiFi")


@pytest.mark.parametrize("lang", [pytest.param(lang, marks=needs.voice(v)) for lang, v in ASSISTANT_VOICES.items()])
def test_vary_changes_the_audio_but_not_the_speaker(lang):
    voice = ASSISTANT_VOICES[lang]
    rng = random.Random(0)
    other = vary_voice(voice, rng)
    text = "三加五" if lang == "zh" else "Three plus five."
    assert other.speaker == voice.speaker and other.id != voice.id
    assert not np.array_equal(speak(text, voice).pcm, speak(text, other).pcm)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_held_out_voices_are_nowhere_in_training(lang):
    rng = random.Random(0)
    drawn = [draw_voice(lang, rng) for _ in range(500)]
    training = {v.name for v in (*training_voices(lang), *drawn, ASSISTANT_VOICES[lang])}
    assert len(training) > 50
    assert training.isdisjoint(v.name for held_out in HELD_OUT_VOICES.values() for v in held_out)
