"""Steps of a conversation that are captured as CUDA graphs, traced on a CPU."""

import numpy as np
import pytest

from speechgpt2 import chat_conversation
from speechgpt2.chat import SpeechGPT
from speechgpt2.lm import captured_steps
from speechgpt2.lm.captured_steps import CapturedSteps
from speechgpt2.lm.generation import Steps
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.nn import cuda_graph
from speechgpt2.types import Turn
from tests.engine.tiny import models, noise, tiny_lm
from tests.traced import Traced, without_host


def talk(gpt: SpeechGPT, questions: int = 2) -> list:
    """A conversation in speech, with an answer that the reader leaves early; what was answered."""
    sampling = SamplingParams.for_batch(1, seed=5)
    conversation = gpt.conversation("s2s", sampling=sampling, max_patches=30)
    for _ in conversation.ask(Turn.user("Hello"), stream=True):
        break
    return [conversation.ask(Turn.user(speech=noise(0.5, n))) for n in range(questions)]


@pytest.fixture
def captures(monkeypatch):
    monkeypatch.setattr(captured_steps, "GraphedFunction", Traced)
    monkeypatch.setattr(captured_steps, "STEPS_BEFORE_CAPTURE", 2)
    monkeypatch.setattr(chat_conversation, "GROWTH", 64)
    monkeypatch.setattr(cuda_graph, "SHORTEST_GRAPH", 128)


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_captured_conversation_equals_one_that_is_not(monkeypatch, captures, draft_tokens):
    codec, lm = models()
    lm = tiny_lm(chain_of_modality=True, draft_tokens=draft_tokens) if draft_tokens else lm
    with without_host(monkeypatch):
        wanted = talk(SpeechGPT(codec, lm))
        gpt, made = SpeechGPT(codec, lm), []

        def steps(conversation):
            made.append(gpt._free_steps.pop() if gpt._free_steps else CapturedSteps(lm, 400))
            return made[-1]

        monkeypatch.setattr(gpt, "steps", steps)
        Traced.made = 0
        first = talk(gpt)
        traces = Traced.made
        gpt._free_steps.append(made[0])
        again = talk(gpt)
    assert traces == (6 if draft_tokens else 4) and Traced.made == traces  # no trace was made twice
    for ours in (first, again):
        for reply, expected in zip(ours, wanted, strict=True):
            assert reply.text == expected.text and reply.reason == expected.reason
            assert np.array_equal(reply.codes, expected.codes) and np.allclose(reply.pcm, expected.pcm, atol=1e-6)


def test_conversation_that_outgrows_its_state_goes_on(monkeypatch, captures):
    codec, lm = models()
    with without_host(monkeypatch):
        gpt = SpeechGPT(codec, lm)
        wanted = talk(gpt)
        small = CapturedSteps(lm, 130)
        monkeypatch.setattr(gpt, "steps", lambda conversation: small)
        found = talk(gpt)
    assert [r.text for r in found] == [r.text for r in wanted] and small.sample_graph is not None


def test_without_cuda_nothing_is_captured():
    gpt = SpeechGPT(*models())
    assert type(gpt.conversation("t2t").steps) is Steps
