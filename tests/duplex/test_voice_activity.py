"""Voice activity on real recordings."""

from pathlib import Path

import numpy as np
import pytest

from speechgpt2.audio import load
from speechgpt2.duplex.voice_activity import BLOCK_SAMPLES, VoiceActivityDetector
from speechgpt2.types import SAMPLE_RATE
from tests import needs

needs.module("onnxruntime", "server")

EXAMPLES = Path(__file__).parents[2] / "examples"
SILENCE = np.zeros(SAMPLE_RATE, np.float32)


@pytest.fixture(scope="module", params=[1, 2])
def question(request):
    return load(EXAMPLES / f"question-{request.param}.wav")


def frames(pcm, chunk=None):
    detector = VoiceActivityDetector()
    chunks = np.split(pcm, range(chunk, len(pcm), chunk)) if chunk else [pcm]
    return [block for piece in chunks for block in detector.push(piece)]


def test_speech_is_detected_within_two_blocks(question):
    pcm = np.concatenate([SILENCE, question, SILENCE])
    loud = np.flatnonzero(np.abs(pcm) > 0.02)
    begins, ends = int(loud[0]), int(loud[-1])
    blocks = frames(pcm)
    voiced = [block.at for block in blocks if block.probability >= 0.5]
    assert 0 < voiced[0] - begins <= 2 * BLOCK_SAMPLES + BLOCK_SAMPLES  # the block in which it begins, and two more
    assert abs(voiced[-1] - ends) < 6 * BLOCK_SAMPLES
    assert all(
        block.probability < 0.2
        for block in blocks
        if block.at < begins - BLOCK_SAMPLES or block.at > ends + 6 * BLOCK_SAMPLES
    )


def test_detection_equals_for_any_chunking(question):
    whole = frames(question)
    for chunk in (240, 1000, 12_345):
        pieces = frames(question, chunk)
        assert len(whole) - len(pieces) in (0, 1)  # the resampler may hold the last block back
        assert [b.at for b in pieces] == [b.at for b in whole[: len(pieces)]]
        assert np.allclose([b.probability for b in pieces], [b.probability for b in whole[: len(pieces)]], atol=1e-3)


def test_detectors_are_independent(question):
    alone = [block.probability for block in frames(question)]
    a, b, together = VoiceActivityDetector(), VoiceActivityDetector(), []
    for piece in np.split(question, range(960, len(question), 960)):
        list(b.push(np.random.default_rng(0).normal(0, 0.1, 960).astype(np.float32)))
        together += [block.probability for block in a.push(piece)]
    assert np.allclose(together, alone[: len(together)], atol=1e-3)


def test_noise_and_hum_are_no_speech():
    noise = np.random.default_rng(1).normal(0, 0.05, 3 * SAMPLE_RATE)
    hum = 0.2 * np.sin(2 * np.pi * 100 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE)
    for pcm in (noise, hum):
        blocks = frames(pcm.astype(np.float32))
        assert np.mean([block.probability >= 0.5 for block in blocks]) < 0.1


def test_frame_holds_its_block():
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    levels = [np.sqrt(np.mean(block.block**2)) for block in frames(np.concatenate([SILENCE, tone.astype(np.float32)]))]
    assert levels[10] == pytest.approx(0, abs=1e-4) and levels[-5] == pytest.approx(0.5 / 2**0.5, rel=0.02)
