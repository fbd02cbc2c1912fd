"""F0 of melodies that are known, in noise too; what has none."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt2.data.audit.labels import melody
from speechgpt2.dsp.autocorrelation_pitch import track_pitch
from speechgpt2.tts.augment import add_noise
from speechgpt2.types import SAMPLE_RATE


@pytest.mark.parametrize(("low", "high"), [(80.0, 160.0), (250.0, 450.0)])
@pytest.mark.parametrize("snr", [40.0, 5.0])
def test_pitch_track_follows_a_melody(low, high, snr):
    pcm, hertz = melody(low, high)
    found = track_pitch(add_noise(pcm, snr, 0.5, np.random.default_rng(3)))
    assert len(found) == len(pcm) // 240 + 1
    known = hertz[np.minimum(np.arange(len(found)) * 240, len(hertz) - 1)]
    both = (found > 0) & (known > 0)
    error = np.abs(found[both] / known[both] - 1)
    assert np.median(error) < 0.005 and (error > 0.05).mean() < 0.02
    assert ((found > 0) != (known > 0)).mean() < 0.06


def test_pitch_is_found_without_the_fundamental():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = sum(np.sin(2 * np.pi * 120 * k * time) for k in range(3, 12)) / 20
    found = track_pitch(pcm)
    assert np.median(found) == pytest.approx(120, rel=0.005) and (found > 0).mean() > 0.95


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE) * 0.1
    assert (track_pitch(noise) > 0).mean() < 0.02
    assert not track_pitch(np.zeros(SAMPLE_RATE)).any()
    for samples in (0, 1, 100):
        assert not track_pitch(np.ones(samples, np.float32)).any()
