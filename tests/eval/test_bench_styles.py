"""The benchmark of styles: what it measures on a tone with a pause."""

import numpy as np
import pytest

from speechgpt2.bench.styles import measure
from speechgpt2.style import NORMAL, Style, named_style
from speechgpt2.tts.utterance import Utterance, Voice
from speechgpt2.types import SAMPLE_RATE


def utterance():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = sum(np.sin(2 * np.pi * 140 * n * time) / n for n in range(1, 12)) * (time < 0.8) * 0.05
    return Utterance(pcm.astype(np.float32), "hum", "en", Voice("espeak", "m1", "en"), (), ())


class Deaf:
    """A recogniser that writes nothing."""

    def transcribe(self, pcm, language):
        return type("Nothing", (), {"text": ""})()


def test_normal_speech_is_the_control():
    row = measure(NORMAL, [utterance()], Deaf())
    assert (row.rate, row.voiced, row.errors) == (1.0, 1.0, 1.0)
    assert row.pitch == pytest.approx(0.0) and row.level == pytest.approx(0.0, abs=1e-3)


def test_measured_values_are_those_asked_for():
    row = measure(Style(rate=1.25, pitch=3.0, level=-4.0), [utterance()])
    assert row.rate == pytest.approx(1.25, rel=0.02)
    assert row.pitch == pytest.approx(3.0, abs=0.2) and row.level == pytest.approx(-4.0, abs=0.5)
    assert row.cost > 0 and row.errors is None


def test_whisper_has_no_pitch():
    row = measure(named_style("whisper"), [utterance()])
    assert row.pitch is None and row.voiced < 0.1
