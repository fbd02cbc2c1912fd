"""The built-in model on a device says what it says on the CPU."""

from functools import cache

import numpy as np
import pytest
import torch

from speechgpt2.chat import SpeechGPT
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.nn.linear import pack
from speechgpt2.types import Turn
from tests.engine.tiny import noise, tiny_codec, tiny_lm

QUESTION = Turn.user(text="What is three plus five?")


@cache
def mini(device):
    return SpeechGPT.from_pretrained("mini", device)


def greedy(model):
    return SamplingParams.greedy(device=model.lm.device)


def test_mini_writes_the_same(device):
    here, there = (mini(place).chat([QUESTION], "t2t") for place in (torch.device("cpu"), device))
    assert there.text == here.text and "eight" in there.text.lower()


def test_mini_says_the_same(device):
    replies = [
        model.chat([QUESTION], "t2s", sampling=greedy(model), max_patches=30)
        for model in (mini(torch.device("cpu")), mini(device))
    ]
    here, there = replies
    assert there.text == here.text and len(there.pcm) and there.pcm.dtype == np.float32
    count = min(len(here.codes), len(there.codes))
    assert (here.codes[:count] == there.codes[:count]).mean() > 0.5  # a code that swaps changes those after it


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_mini_is_quantized(device, quantize):
    model = SpeechGPT.from_pretrained("mini", device, quantize=quantize)
    assert "eight" in model.chat([QUESTION], "t2t").text.lower()


def test_spoken_turns_of_a_tiny_model(device):
    texts = []
    for place in (torch.device("cpu"), device):
        model = SpeechGPT(tiny_codec().to(place), tiny_lm(chain_of_modality=True).to(place))
        pack(model.lm)
        turns = [Turn.user(speech=noise(0.5, 1)), Turn.assistant(text="Hello"), Turn.user(speech=noise(0.7, 2))]
        texts.append(model.chat(turns, "s2s", sampling=greedy(model), max_patches=20).text)
    assert texts[0] == texts[1]
