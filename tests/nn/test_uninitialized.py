"""Modules that a checkpoint will fill are built without drawing weights, which takes time and touches their memory."""

import torch
from torch import nn

from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn.uninitialized import uninitialized
from tests.engine.tiny import tiny_codec
from tests.lm.tiny import tiny_config, tiny_tokenizer


def build_modules():
    nn.Linear(8, 8), nn.Embedding(8, 8), nn.Conv1d(4, 4, 3)
    SpeechLM(tiny_config(chained=True, chain_of_modality=True, draft_tokens=3), tiny_tokenizer())


def test_nothing_is_drawn():
    tiny_codec()  # seeds the generator
    before = torch.get_rng_state()
    with uninitialized():
        build_modules()
    assert torch.equal(torch.get_rng_state(), before)
    build_modules()
    assert not torch.equal(torch.get_rng_state(), before)


def test_modules_have_the_precision_and_the_default_is_restored():
    with uninitialized(dtype=torch.bfloat16):
        assert nn.Linear(2, 2).weight.dtype == torch.bfloat16
    assert nn.Linear(2, 2).weight.dtype == torch.float32
