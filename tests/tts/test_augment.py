"""Another tract, pauses, room, colour and noise: as drawn, at the level asked for, and with times that stay true."""

import random
from dataclasses import replace

import numpy as np
import pytest

from speechgpt2.dsp.world_pitch import track_pitch
from speechgpt2.tts.augment import (
    add_noise,
    add_reverb,
    augment_utterance,
    change_voice,
    equalise,
    pad_silence,
    stretch,
)
from speechgpt2.tts.utterance import Phone, Utterance, Voice, Word
from speechgpt2.types import SAMPLE_RATE
from tests import needs


def tone(hz, seconds=1.0):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


@pytest.fixture
def utterance():
    return Utterance(
        tone(200), "ah oh", "en", Voice("espeak", "f1", "en"),
        (Word("ah", 0.1, 0.4), Word("oh", 0.5, 0.9)), (Phone("a", 0.1, 0.4),),
    )  # fmt: skip


def peak_hz(pcm):
    return np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))).argmax() * SAMPLE_RATE / len(pcm)


def test_stretching_moves_pitch_and_times_together(utterance):
    slower = stretch(utterance, 1.1)
    assert len(slower.pcm) == pytest.approx(1.1 * SAMPLE_RATE, abs=2)
    assert peak_hz(slower.pcm) == pytest.approx(200 / 1.1, abs=1)
    assert slower.words[1] == ("oh", pytest.approx(0.55), pytest.approx(0.99))
    assert slower.phones[0].end == pytest.approx(0.44)


def vowel(f0, formant, seconds=1.0):
    """A pulse train through one resonance."""
    pulses = np.zeros(int(seconds * SAMPLE_RATE))
    pulses[:: round(SAMPLE_RATE / f0)] = 1
    time = np.arange(600) / SAMPLE_RATE
    ringing = np.exp(-150 * time) * np.sin(2 * np.pi * formant * time)
    return (0.3 * np.convolve(pulses, ringing)[: len(pulses)]).astype(np.float32)


def test_other_speaker_has_other_formants_at_the_given_pitch(utterance):
    needs.module("pyworld", "synthesis")
    spoken = replace(utterance, pcm=vowel(120, 1000))
    other = change_voice(spoken, formants=1.25, pitch=200.0, liveliness=1.0, tempo=1.1, breath=0.0)
    f0 = track_pitch(other.pcm)
    assert np.median(f0[f0 > 0]) == pytest.approx(200, rel=0.03)
    spectrum = np.abs(np.fft.rfft(other.pcm[: SAMPLE_RATE // 2] * np.hanning(SAMPLE_RATE // 2)))
    smooth = np.convolve(spectrum, np.ones(120), "same")  # over 240 Hz, a little more than a harmonic
    assert smooth.argmax() * 2 == pytest.approx(1250, rel=0.08)
    assert len(other.pcm) == pytest.approx(1.1 * SAMPLE_RATE, rel=0.02)
    assert other.words[1] == ("oh", pytest.approx(0.55), pytest.approx(0.99))


def test_breathy_speaker_has_noise_in_the_voice(utterance):
    needs.module("pyworld", "synthesis")
    spoken = replace(utterance, pcm=vowel(120, 1000))
    clear, breathy = (change_voice(spoken, 1.0, 120.0, 1.0, 1.0, breath).pcm for breath in (0.0, 0.5))
    assert between_harmonics(breathy, 120) > 2 * between_harmonics(clear, 120)


def between_harmonics(pcm, f0):
    """Share of the power that lies a half step beside the multiples of `f0`."""
    half = pcm[SAMPLE_RATE // 4 : SAMPLE_RATE // 4 + SAMPLE_RATE // 2]
    power = np.square(np.abs(np.fft.rfft(half * np.hanning(len(half)))))
    phase = (np.arange(len(power)) * 2 / f0) % 1
    return power[(phase > 0.3) & (phase < 0.7)].sum() / power.sum()


def test_pauses_move_the_words(utterance):
    later = pad_silence(utterance, 0.3, 0.2)
    assert len(later.pcm) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)
    assert not later.pcm[: int(0.3 * SAMPLE_RATE)].any() and not later.pcm[-int(0.2 * SAMPLE_RATE) :].any()
    assert later.words[1] == ("oh", pytest.approx(0.8), pytest.approx(1.2))


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_noise_has_the_level_that_was_asked_for(slope):
    pcm = tone(440)
    noise = add_noise(pcm, 20.0, slope, np.random.default_rng(0)) - pcm
    assert 10 * np.log10(np.square(pcm).mean() / np.square(noise).mean()) == pytest.approx(20.0, abs=1e-3)


def test_equaliser_tilts_and_cuts():
    low, high = tone(500), tone(2000)
    gains = [np.square(equalise(x, 3.0, 100, 8000)).mean() / np.square(x).mean() for x in (low, high)]
    assert 10 * np.log10(gains[1] / gains[0]) == pytest.approx(6.0, abs=0.5)  # two octaves of 3 dB
    assert np.square(equalise(tone(11_000), 0.0, 100, 4000)).mean() < 0.01 * np.square(tone(11_000)).mean()


def test_reverberation_decays():
    pcm = np.concatenate([tone(300, 0.2), np.zeros(SAMPLE_RATE // 2, np.float32)])
    wet = add_reverb(pcm, 0.3, 0.5, np.random.default_rng(0))
    after = wet[int(0.2 * SAMPLE_RATE) :]
    early, late = (np.square(part).mean() for part in (after[:2400], after[4800:7200]))
    assert len(wet) == len(pcm) and early > 10 * late > 0


def test_results_depend_on_the_seed_and_do_not_clip(utterance):
    first, again, other = (augment_utterance(utterance, random.Random(seed), share=1.0) for seed in (1, 1, 2))
    assert np.array_equal(first.pcm, again.pcm) and first.words == again.words
    assert len(other.pcm) != len(first.pcm)
    assert first.pcm.dtype == np.float32 and np.abs(first.pcm).max() <= 0.95 + 1e-6
    assert first.words[-1].end <= first.duration
