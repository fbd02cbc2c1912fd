"""Delivery of speech in a style: streaming equals offline, and what is asked for is what is measured."""

import numpy as np
import pytest

from speechgpt2.dsp.autocorrelation_pitch import track_pitch
from speechgpt2.dsp.delivery import Delivery, deliver, source_samples
from speechgpt2.dsp.level import CEILING
from speechgpt2.style import FASTEST, SLOWEST, Style
from speechgpt2.types import SAMPLE_RATE

STYLES = {
    "slowest": Style(rate=SLOWEST),
    "slower": Style(rate=0.8),
    "faster": Style(rate=1.3),
    "fastest": Style(rate=FASTEST),
    "higher": Style(pitch=3),
    "lower": Style(pitch=-4),
    "whisper": Style(whisper=True),
    "louder": Style(level=9),
    "softer": Style(level=-9),
    "all": Style(rate=1.2, pitch=2, level=6, whisper=True),
}


def voice(seconds=1.0, hertz=120.0):
    """A voice: pulses that glide a little, with formants, and pauses."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(hertz * (1 + 0.05 * np.sin(2 * np.pi * 1.5 * time))) / SAMPLE_RATE
    pcm = sum(np.exp(-(((n * hertz - 600) / 800) ** 2)) * np.sin(n * phase) for n in range(1, 20))
    return (0.1 * pcm * (np.sin(2 * np.pi * 2 * time) > -0.8)).astype(np.float32)


def streamed(pcm, style, sizes):
    delivery, parts, start = Delivery(style), [], 0
    while start < len(pcm):
        size = next(sizes)
        parts.append(delivery.push(pcm[start : start + size]))
        start += size
    return np.concatenate([*parts, delivery.finish()])


@pytest.mark.parametrize("name", STYLES)
def test_streaming_equals_offline_bit_for_bit(name):
    pcm, style, rng = voice(0.3), STYLES[name], np.random.default_rng(0)
    whole = deliver(pcm, style)
    assert whole.dtype == np.float32
    for largest in (60, 5000):
        sizes = iter(rng.integers(0, largest, 50_000).tolist())
        assert np.array_equal(streamed(pcm, style, sizes), whole)


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("length", [0, 1, 100, 2880, 11_111])
def test_length_follows_the_rate(name, length):
    style = STYLES[name]
    assert abs(len(deliver(voice(1.0)[:length], style)) - length / style.rate) <= 2


def test_neutral_style_is_the_identity_at_once():
    pcm, delivery = voice(0.1), Delivery(Style())
    assert delivery.push(pcm) is pcm
    assert len(delivery.finish()) == 0


@pytest.mark.parametrize("style", [Style(rate=0.7), Style(pitch=4), Style(pitch=-4), Style(rate=1.5)], ids=str)
def test_delay_is_bounded(style):
    """Input that is held back, in the middle of a stream: what came out stands for n · rate samples of the input."""
    pcm, delivery = voice(1.0), Delivery(style)
    out = 0
    for start in range(0, len(pcm), 240):
        out += len(delivery.push(pcm[start : start + 240]))
        assert start + 240 - out * style.rate <= 0.041 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 2.0])
@pytest.mark.parametrize("hertz", [90.0, 220.0])
def test_rate_keeps_pitch_and_place(rate, hertz):
    pcm = voice(2.0, hertz)
    out = deliver(pcm, Style(rate=rate))
    before, after = track_pitch(pcm), track_pitch(out)
    assert abs(12 * np.log2(np.median(after[after > 0]) / np.median(before[before > 0]))) < 0.15
    # The envelope is that of the input at n · rate: pauses are where they should be.
    places = (np.arange(len(out)) * rate).astype(int).clip(0, len(pcm) - 1)
    smooth = np.ones(1200) / 1200
    ours, theirs = np.convolve(np.abs(out), smooth, "same"), np.convolve(np.abs(pcm), smooth, "same")[places]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.85
    assert (after > 0).mean() == pytest.approx((before > 0).mean(), abs=0.06)


@pytest.mark.parametrize("semitones", [-5, -2, 2, 5])
def test_pitch_moves_by_semitones(semitones):
    pcm = voice(2.0, 150.0)
    before, after = track_pitch(pcm), track_pitch(deliver(pcm, Style(pitch=semitones)))
    assert 12 * np.log2(np.median(after[after > 0]) / np.median(before[before > 0])) == pytest.approx(
        semitones, abs=0.2
    )


def test_whisper_has_no_voice_but_its_loudness():
    pcm = voice(2.0)
    out = deliver(pcm, Style(whisper=True))
    assert (track_pitch(pcm) > 0).mean() > 0.5
    assert (track_pitch(out) > 0).mean() < 0.05
    assert -15 < 20 * np.log10(out.std() / pcm.std()) < 3


@pytest.mark.parametrize("decibels", [-10, -3, 3])
def test_level_changes_by_decibels(decibels):
    pcm = 0.2 * voice(1.0) / np.abs(voice(1.0)).max()
    assert 20 * np.log10(deliver(pcm, Style(level=decibels)).std() / pcm.std()) == pytest.approx(decibels, abs=0.05)


def test_limiter_never_exceeds_its_ceiling():
    pcm = voice(1.0) / np.abs(voice(1.0)).max()
    out = deliver(pcm, Style(level=12))
    assert np.abs(out).max() <= CEILING + 1e-6
    assert out.std() > 0.9 * pcm.std()


@pytest.mark.parametrize("style", [Style(rate=2.0), Style(whisper=True), Style(level=6), Style(pitch=3)], ids=str)
def test_silence_stays_silent(style):
    assert np.abs(deliver(np.zeros(5000, np.float32), style)).max() < 1e-3


@pytest.mark.parametrize("rate", [0.25, 0.8, 1.0, 1.3, 4.0])
def test_played_samples_name_the_source(rate):
    pcm = voice(0.5)
    out = deliver(pcm, Style(rate=rate))
    assert len(pcm) <= source_samples(len(out), rate) <= len(pcm) + 2 * rate
    assert source_samples(0, rate) <= rate
    assert source_samples(len(out) // 2, rate) == pytest.approx(len(pcm) / 2, abs=2 * rate)
