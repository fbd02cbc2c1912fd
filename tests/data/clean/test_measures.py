"""Measures on signals whose truth is known: each tells its fault from clean, and none is moved by loudness."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt2.data.audit import faults
from speechgpt2.data.clean.duplicates import fingerprint, similarity
from speechgpt2.data.clean.loudness import loudness
from speechgpt2.data.clean.quality import bandwidth, clipping, music, overlap, snr
from speechgpt2.dsp.spectrum import power
from speechgpt2.types import SAMPLE_RATE


def voice(pitch: float, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Syllables of a buzz whose pitch wanders, with pauses: what the measures take for a voice."""
    rng = np.random.default_rng(seed)
    n = int(seconds * SAMPLE_RATE)
    wander = np.interp(np.arange(n), np.linspace(0, n, 20), pitch * 2 ** rng.uniform(-0.3, 0.3, 20))
    phase = 2 * np.pi * np.cumsum(wander) / SAMPLE_RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    hiss = np.diff(rng.standard_normal(n + 1)) * 0.1
    syllables = np.repeat(rng.choice([0.0, 0.0, 0.5, 1.0, 1.0], n // 3600 + 1), 3600)[:n]
    syllables = np.convolve(syllables, np.hanning(480) / np.hanning(480).sum(), "same")
    made = buzz * syllables + hiss * np.roll(syllables, 1200) + 1e-4 * rng.standard_normal(n)
    return faults.limit_peak(made * 0.1)


CLEAN = voice(120)


def test_loudness_of_the_standards_sine():
    """BS.1770: 997 Hz at full scale in one channel is −3.01 LUFS."""
    sine = np.sin(2 * np.pi * 997 * np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    assert loudness(sine) == pytest.approx(-3.01, abs=0.02)
    assert loudness(sine / 10) == pytest.approx(-23.01, abs=0.02)


def test_loudness_does_not_count_pauses():
    pause = np.zeros(5 * SAMPLE_RATE, np.float32)
    assert loudness(np.concatenate([CLEAN, pause])) == pytest.approx(loudness(CLEAN), abs=0.3)
    assert loudness(pause) == -70.0


@pytest.mark.parametrize("ratio", [0, 10, 20])
def test_snr_of_known_noise(ratio):
    noisy = faults.noisy(CLEAN, ratio, 0.0, np.random.default_rng(1))
    assert snr(power(noisy)) == pytest.approx(ratio, abs=5)
    assert snr(power(noisy * 0.1)) == pytest.approx(snr(power(noisy)), abs=0.5)


def test_clean_speech_has_no_fault():
    assert snr(power(CLEAN)) > 25 and bandwidth(power(CLEAN)) > 9000
    assert clipping(CLEAN) < 0.005 and overlap(CLEAN) < 0.02 and music(CLEAN) < 0.1


@pytest.mark.parametrize("hertz", [4000, 8000])
def test_bandwidth_of_a_known_band(hertz):
    assert bandwidth(power(faults.narrow(CLEAN, hertz))) == pytest.approx(hertz, rel=0.08)


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_clipping_is_about_the_share_that_was_cut(share):
    assert clipping(faults.clipped(CLEAN, share)) == pytest.approx(share, rel=0.8)


def test_overlap_finds_two_voices():
    assert overlap(faults.mixed(CLEAN, voice(210, seed=5), 0)) > 0.02


def test_music_has_constant_tones():
    assert music(faults.mixed(CLEAN, faults.tune(4.0, np.random.default_rng(3)), 5)) > 0.3


def test_fingerprint_recognises_its_copy():
    other, rng = voice(130, seed=9), np.random.default_rng(2)
    mine = fingerprint(power(CLEAN))
    assert similarity(mine, fingerprint(power(faults.retouched(CLEAN, rng)))) > 0.8
    assert similarity(mine, fingerprint(power(other))) < 0.65


@pytest.mark.parametrize("length", [0, 1, 100, 511])
def test_measures_accept_a_click(length):
    pcm = np.full(length, 0.1, np.float32)
    for value in (loudness(pcm), snr(power(pcm)), bandwidth(power(pcm)), clipping(pcm), overlap(pcm), music(pcm)):
        assert np.isfinite(value)
    fingerprint(power(pcm))
