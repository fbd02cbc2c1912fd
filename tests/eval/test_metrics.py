"""Each measure on signals whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt2.eval import metrics
from speechgpt2.eval.boersma_pitch import track_pitch
from speechgpt2.types import SAMPLE_RATE
from tests import needs

SECONDS = 2.0
TIMES = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE


def voice(f0: float) -> np.ndarray:
    """A steady voice-like tone: all harmonics below 4 kHz, falling, syllables four times a second."""
    orders = np.arange(1, int(4000 / f0) + 1)
    wave = sum(np.sin(2 * np.pi * f0 * k * TIMES + k) / k for k in orders)
    return (0.1 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * TIMES))).astype(np.float32)


def pulses(rate: float) -> np.ndarray:
    wave = np.zeros(len(TIMES), np.float32)
    wave[(np.arange(0, SECONDS, 1 / rate) * SAMPLE_RATE).astype(int)] = 1.0
    return wave


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=len(TIMES)).astype(np.float32) * 0.1


@pytest.mark.parametrize("f0", [75.0, 120.0, 171.0, 240.0, 400.0])
def test_pitch_of_a_tone(f0):
    found = track_pitch(voice(f0))
    assert np.mean(found > 0) > 0.95
    assert np.median(found[found > 0]) == pytest.approx(f0, rel=0.005)


def test_pitch_needs_no_fundamental():
    spectrum = np.fft.rfft(voice(120.0))
    spectrum[: int(200 * SECONDS)] = 0
    found = track_pitch(np.fft.irfft(spectrum).astype(np.float32))
    assert np.median(found[found > 0]) == pytest.approx(120.0, rel=0.01)


def test_noise_and_silence_have_no_pitch():
    assert np.mean(track_pitch(noise()) > 0) < 0.05
    assert not track_pitch(np.zeros(4800, np.float32)).any()
    assert not track_pitch(np.zeros(0, np.float32)).any()


def test_gross_pitch_error():
    f0 = track_pitch(voice(150.0))
    assert metrics.gross_pitch_error(f0, f0) == 0
    assert metrics.gross_pitch_error(f0, 2 * f0) == 1
    assert metrics.gross_pitch_error(f0, track_pitch(voice(300.0))) > 0.99
    assert metrics.gross_pitch_error(f0, 1.1 * f0) == 0
    assert np.isnan(metrics.gross_pitch_error(f0, 0 * f0))


def test_voicing_error():
    f0 = np.array([100.0, 100.0, 0.0, 0.0])
    assert metrics.voicing_error(f0, f0) == 0
    assert metrics.voicing_error(f0, 0 * f0) == 0.5
    assert metrics.voicing_error(f0, np.where(f0 > 0, 0.0, 90.0)) == 1


def test_buzz_is_distinguished_from_pitches_and_noise():
    original = track_pitch(voice(170.0))
    assert metrics.hop_lock(original, track_pitch(pulses(100.0))) > 0.95
    assert metrics.hop_lock(original, original) < 0.05
    assert metrics.hop_lock(original, track_pitch(pulses(130.0))) < 0.05
    assert metrics.hop_lock(original, track_pitch(noise())) < 0.05


def test_speaker_at_the_hop_rate_is_not_a_buzz():
    at_hop_rate = track_pitch(voice(100.0))
    assert np.isnan(metrics.hop_lock(at_hop_rate, at_hop_rate))


def test_perplexity_counts_the_codes_in_use():
    codes = np.stack([np.tile(np.arange(64), 8), np.zeros(512, int), np.tile([3, 9], 256)], axis=1)
    assert metrics.perplexity(codes) == pytest.approx((64.0, 1.0, 2.0))


def test_stoi():
    needs.module("pystoi", "eval")
    clean = voice(140.0) + 0.3 * noise()
    assert metrics.stoi(clean, clean) == pytest.approx(1.0, abs=1e-6)
    assert metrics.stoi(clean, noise()) < 0.5
    assert np.isnan(metrics.stoi(clean[:6000], clean[:6000]))


def test_pesq():
    needs.module("pesq", "eval")
    clean = voice(140.0)
    assert metrics.pesq(clean, clean, "wb") > 4.5
    assert metrics.pesq(clean, clean + noise(), "nb") < metrics.pesq(clean, clean + 0.05 * noise(), "nb")
    assert np.isnan(metrics.pesq(np.zeros_like(clean), clean, "wb"))


def test_mel_cepstral_distortion_knows_no_gain():
    clean = voice(140.0)
    assert metrics.mel_cepstral_distortion(clean, clean) == 0
    assert metrics.mel_cepstral_distortion(clean, 0.25 * clean) < 0.1
    assert metrics.mel_cepstral_distortion(clean, noise()) > 5


def test_alignment_removes_the_declared_delay():
    clean = voice(140.0) + 0.3 * noise()
    late = np.concatenate([np.zeros(480 + 48, np.float32), clean])
    original, copy = metrics.align(clean, late, delay=480)
    assert len(original) == len(copy) == len(clean)
    assert np.array_equal(copy, clean)
    early = metrics.align(clean, clean[72:], delay=0)[1]
    assert np.array_equal(early[72:], clean[72 : len(early)])
    assert np.array_equal(metrics.align(clean, late, delay=480, search=0.0)[1][48:], clean[: len(clean) - 48])
