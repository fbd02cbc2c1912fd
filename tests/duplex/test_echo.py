"""The echo guard, with real speech played into a simulated room."""

from pathlib import Path

import numpy as np
import pytest

from speechgpt2.audio import load, resample
from speechgpt2.duplex.echo import EchoGuard
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE

EXAMPLES = Path(__file__).parents[2] / "examples"
PER_BLOCK = VAD_BLOCK / VAD_SAMPLE_RATE  # seconds


@pytest.fixture(scope="module")
def answer():
    return np.tile(load(EXAMPLES / "question-1.wav"), 3)


@pytest.fixture(scope="module")
def voice():
    return load(EXAMPLES / "question-2.wav")


def blocks(pcm):
    pcm = resample(pcm, SAMPLE_RATE, VAD_SAMPLE_RATE)
    return pcm[: len(pcm) // VAD_BLOCK * VAD_BLOCK].reshape(-1, VAD_BLOCK)


def levels(pcm):
    return np.sqrt(np.mean(np.square(blocks(pcm)), axis=1))


def echo(answer, gain, delay=4800, reverberation=0.0):
    """`delay` in samples; `reverberation`: amplitude of the room's answer over that of the direct sound."""
    random = np.random.default_rng(0)
    decay = random.standard_normal(SAMPLE_RATE // 2) * np.exp(-np.arange(SAMPLE_RATE // 2) / 1700)
    response = np.concatenate([[1.0], np.zeros(96), reverberation * decay / np.linalg.norm(decay)])
    echo = gain * np.convolve(answer, response)
    noise = 1e-4 * random.standard_normal(len(answer))
    return (np.concatenate([np.zeros(delay), echo])[: len(answer)] + noise).astype(np.float32)


def admitted(guard, answer, microphone):
    guard.play(answer)
    return np.array([guard.may_be_user(block) for block in blocks(microphone)])


@pytest.mark.parametrize("reverberation", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("delay", [480, 2400, 9600])
@pytest.mark.parametrize("gain", [0.05, 0.3, 1.5])
def test_echo_is_recognised_after_a_few_blocks(answer, gain, delay, reverberation):
    microphone = echo(answer, gain, delay, reverberation)
    passed = admitted(EchoGuard(), answer, microphone)
    loud = levels(microphone) > 0.2 * levels(microphone).max()
    assert loud.sum() > 15 and passed[loud].sum() * PER_BLOCK < 0.2  # of the 0.3 s that would interrupt


def test_voice_above_the_echo_is_admitted(answer, voice):
    microphone = echo(answer, 0.1, reverberation=1.0)
    start = len(answer) // 2
    microphone[start : start + len(voice)] += voice
    passed = admitted(EchoGuard(), answer, microphone)
    spoken = np.arange(len(passed)) * PER_BLOCK * SAMPLE_RATE
    loud = (levels(microphone) > 0.08) & (spoken >= start) & (spoken < start + len(voice) - VAD_BLOCK)
    assert loud.sum() > 10 and passed[loud].mean() > 0.9


@pytest.mark.parametrize("loudness", [0.1, 1.0])
@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0])
def test_voice_on_a_headset_is_admitted_at_any_time(answer, voice, seconds, loudness):
    microphone = np.zeros_like(answer)
    start = round(seconds * SAMPLE_RATE)
    microphone[start : start + len(voice)] = loudness * voice
    passed = admitted(EchoGuard(), answer, microphone)
    loud = levels(microphone) > 0.05 * loudness
    assert loud.sum() > 10 and passed[loud].mean() > 0.9


def test_coupling_follows_a_louder_speaker(answer):
    louder = np.tile(answer, 2)
    microphone = echo(louder, 0.1)
    microphone[len(answer) :] *= 6
    passed = admitted(EchoGuard(), louder, microphone)
    loud = levels(microphone) > 0.05 * np.abs(answer).max()
    assert loud.sum() > 20 and passed[loud].sum() * PER_BLOCK < 0.2


def test_coupling_decays_without_echo(answer):
    guard = EchoGuard()
    admitted(guard, answer, echo(answer, 0.5))
    assert guard.coupling == pytest.approx(0.5, rel=0.3)
    admitted(guard, answer, np.zeros_like(answer))
    assert guard.coupling < 0.01


def test_everything_is_admitted_without_playback(answer):
    guard = EchoGuard()
    assert all(guard.may_be_user(block) for block in blocks(0.01 * answer))
    guard.play(answer)
    guard.stop()
    assert all(guard.may_be_user(block) for block in blocks(answer))
