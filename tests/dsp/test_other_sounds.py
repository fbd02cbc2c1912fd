"""Sounds that are no speech: within range, of random length, the same for the same generator."""

import random

import numpy as np
import pytest

from speechgpt2.dsp.other_sounds import KINDS, SECONDS, draw_sound
from speechgpt2.types import SAMPLE_RATE


@pytest.mark.parametrize("name", KINDS)
def test_sound_is_finite_and_within_full_scale(name):
    for seed in range(5):
        pcm = KINDS[name](SAMPLE_RATE, np.random.default_rng(seed))
        assert pcm.shape == (SAMPLE_RATE,) and np.isfinite(pcm).all() and 0 < np.abs(pcm).max() <= 1


def test_silence_is_far_below_the_rest():
    def level(name):
        return np.mean([np.abs(KINDS[name](SAMPLE_RATE, np.random.default_rng(i))).max() for i in range(5)])

    assert level("silence") < 0.01 < min(level(name) for name in KINDS if name != "silence")


def test_draw_is_deterministic_and_varied():
    def drawn(seed):
        rng = random.Random(seed)
        return [draw_sound(rng) for _ in range(20)]

    assert all(np.array_equal(a, b) for a, b in zip(drawn(0), drawn(0), strict=True))
    lengths = {len(pcm) for pcm in drawn(0)}
    assert len(lengths) == 20
    assert SECONDS[0] * SAMPLE_RATE <= min(lengths) and max(lengths) <= SECONDS[1] * SAMPLE_RATE
