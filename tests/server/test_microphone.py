"""The buffer of a client's microphone."""

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.server import microphone
from speechgpt2.server.microphone import MicrophoneBuffer
from speechgpt2.types import SAMPLE_RATE


def ramp(start, count):
    return audio.to_pcm16(np.arange(start, start + count) / 32_768)


def test_take_returns_audio_of_a_turn():
    buffer = MicrophoneBuffer("audio/pcm")
    for start in range(0, 1000, 100):
        buffer.push(ramp(start, 100), now=float(start + 100))
    assert buffer.take(250, 600) == ramp(250, 350)
    assert buffer.take(0, 700) == ramp(600, 100)
    assert (buffer.received, buffer.committed) == (1000, 700) and buffer.take(900, 5000) == ramp(900, 100)


def test_g711_is_counted_at_24_khz():
    buffer = MicrophoneBuffer("audio/pcmu")
    assert len(buffer.push(bytes(range(100)), 0.0)) == 300
    assert buffer.take(30, 90) == bytes(range(10, 30)) and buffer.received == 300


def test_counting_continues_after_a_change_of_format():
    buffer = MicrophoneBuffer("audio/pcm")
    buffer.push(ramp(0, 300), 0.0)
    buffer.set_format("audio/pcma")
    buffer.push(bytes(100), 0.0)
    assert buffer.received == 600 and buffer.take(300, 600) == bytes(100)


def test_old_audio_is_dropped(monkeypatch):
    monkeypatch.setattr(microphone, "MAX_SECONDS", 1)
    buffer = MicrophoneBuffer("audio/pcm")
    for _ in range(50):
        buffer.push(bytes(2 * SAMPLE_RATE // 10), 0.0)
    assert len(buffer.take(0, buffer.received)) == 2 * SAMPLE_RATE


def test_time_of_a_sample():
    buffer = MicrophoneBuffer("audio/pcm")
    buffer.push(bytes(2 * SAMPLE_RATE), now=100.0)
    assert buffer.time_of(SAMPLE_RATE) == 100.0 and buffer.time_of(SAMPLE_RATE // 2) == pytest.approx(99.5)
