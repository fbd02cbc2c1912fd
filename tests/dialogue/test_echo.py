"""The guard against one's own echo, with real speech played into a simulated room."""

from pathlib import Path

import numpy as np
import pytest

from speechgpt2.audio import load
from speechgpt2.dialogue.echo import BLOCK, EchoGuard

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def answer():
    return np.tile(load(EXAMPLES / "question-1.wav"), 3)


@pytest.fixture(scope="module")
def voice():
    return load(EXAMPLES / "question-2.wav")


def levels(pcm):
    whole = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return np.sqrt(np.mean(np.square(whole), axis=1))


def echo(answer, gain, delay=4800):
    return np.concatenate([np.zeros(delay, np.float32), gain * answer])[: len(answer)]


def admitted(guard, answer, microphone):
    guard.play(answer)
    return np.array([guard.admits(level) for level in levels(microphone)])


@pytest.mark.parametrize("delay", [480, 2400, 5760])
@pytest.mark.parametrize("gain", [0.05, 0.3, 0.8])
def test_an_echo_is_not_the_users_voice(answer, gain, delay):
    microphone = echo(answer, gain, delay)
    passed = admitted(EchoGuard(), answer, microphone)
    loud = levels(microphone) > 0.2 * gain * np.abs(answer).max()
    assert loud.sum() > 15 and not passed[loud].any()


def test_a_voice_above_the_echo_is(answer, voice):
    microphone = echo(answer, 0.1)
    start = len(answer) // 2
    microphone[start : start + len(voice)] += voice
    passed = admitted(EchoGuard(), answer, microphone)
    spoken = np.arange(len(passed)) * BLOCK
    loud = (levels(microphone) > 0.08) & (spoken >= start) & (spoken < start + len(voice) - BLOCK)
    assert loud.sum() > 10 and passed[loud].mean() > 0.9


def test_on_a_headset_a_soft_voice_is_heard_soon(answer, voice):
    microphone = np.zeros_like(answer)
    microphone[24_000 : 24_000 + len(voice)] = 0.2 * voice
    passed = admitted(EchoGuard(), answer, microphone)
    loud = levels(microphone) > 0.01
    assert loud.sum() > 10 and passed[loud].mean() > 0.9


def test_a_loudspeaker_that_is_turned_up_is_learnt(answer):
    louder = np.tile(answer, 4)
    microphone = echo(louder, 0.1)
    microphone[len(answer) :] *= 4
    passed = admitted(EchoGuard(), louder, microphone)
    loud = levels(microphone) > 0.1 * np.abs(answer).max()
    last = np.arange(len(passed)) > 3 * len(passed) // 4
    assert passed[loud & ~last].any() and not passed[loud & last].any()


def test_when_nothing_is_played_everything_passes(answer):
    guard = EchoGuard()
    assert all(guard.admits(level) for level in levels(0.01 * answer))
    guard.play(answer)
    guard.stop()
    assert guard.left == 0 and guard.admits(0.001)


def test_it_knows_what_is_left(answer):
    guard = EchoGuard()
    for piece in np.split(answer, range(1000, len(answer), 1000)):
        guard.play(piece)
    assert guard.left == pytest.approx(len(answer) / 24_000)
    for _ in range(25):
        guard.admits(0.0)
    assert guard.left == pytest.approx(len(answer) / 24_000 - 25 * BLOCK / 24_000)
