"""What is kept of a microphone."""

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.server import microphone
from speechgpt2.server.microphone import Microphone
from speechgpt2.types import SAMPLE_RATE


def ramp(start, count):
    return audio.to_pcm16(np.arange(start, start + count) / 32_768)


def test_a_turn_s_sound_is_what_was_spoken_then():
    ear = Microphone("audio/pcm")
    for start in range(0, 1000, 100):
        ear.push(ramp(start, 100), now=float(start + 100))
    assert ear.take(250, 600) == ramp(250, 350)
    assert ear.take(0, 700) == ramp(600, 100)
    assert (ear.heard, ear.taken) == (1000, 700) and ear.take(900, 5000) == ramp(900, 100)


def test_telephone_sound_is_counted_at_24_khz():
    ear = Microphone("audio/pcmu")
    assert len(ear.push(bytes(range(100)), 0.0)) == 300
    assert ear.take(30, 90) == bytes(range(10, 30)) and ear.heard == 300


def test_a_change_of_format_goes_on_counting():
    ear = Microphone("audio/pcm")
    ear.push(ramp(0, 300), 0.0)
    ear.become("audio/pcma")
    ear.push(bytes(100), 0.0)
    assert ear.heard == 600 and ear.take(300, 600) == bytes(100)


def test_silence_without_end_is_not_kept(monkeypatch):
    monkeypatch.setattr(microphone, "KEPT_SECONDS", 1)
    ear = Microphone("audio/pcm")
    for _ in range(50):
        ear.push(bytes(2 * SAMPLE_RATE // 10), 0.0)
    assert len(ear.take(0, ear.heard)) == 2 * SAMPLE_RATE


def test_moments():
    ear = Microphone("audio/pcm")
    ear.push(bytes(2 * SAMPLE_RATE), now=100.0)
    assert ear.moment(SAMPLE_RATE) == 100.0 and ear.moment(SAMPLE_RATE // 2) == pytest.approx(99.5)
