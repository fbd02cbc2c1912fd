"""Parsing of replies."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser, parse_reply
from speechgpt2.lm.segments import concat
from speechgpt2.types import TextDelta, Transcript
from tests.lm.tiny import tiny_config, tiny_tokenizer


def make(chain_of_modality: bool) -> Prompt:
    return Prompt(tiny_config(chain_of_modality=chain_of_modality), tiny_tokenizer())


def speech(prompt: Prompt, text: str):
    return prompt.align_speech(torch.arange(15).view(5, 3), text=text)


@pytest.mark.parametrize("text", ["Hello there.", "你好，hello", "🙂 unseen ñ 𠀀", "a ### b", "ends ##"])
@pytest.mark.parametrize("chain_of_modality", [False, True])
def test_parsed_reply_equals_the_original(text, chain_of_modality):
    prompt = make(chain_of_modality)
    for spoken in (None, speech(prompt, text)):
        found = parse_reply(prompt, prompt.reply(text, spoken, transcript="what is it"), user_spoke=True)
        assert found.text == text and found.ended
        assert found.transcript == ("what is it" if chain_of_modality else None)
        assert torch.equal(found.codes, spoken.codes if spoken else torch.zeros(0, 3, dtype=torch.int64))


def test_no_transcript_without_a_spoken_turn():
    prompt = make(chain_of_modality=True)
    found = parse_reply(prompt, prompt.reply("Hello"), user_spoke=False)
    assert found.text == "Hello" and found.transcript is None


def test_text_streams_without_broken_characters():
    prompt, deltas = make(chain_of_modality=True), []
    patches = prompt.reply("Hi 🙂 ok", transcript="你 好")
    reader = ReplyParser(prompt, user_spoke=True)
    for token in patches.text[0].tolist():
        deltas += reader.read(token, speaking=False)
    assert deltas[0] == Transcript("你 好")
    assert all(isinstance(delta, TextDelta) and "\ufffd" not in delta.text for delta in deltas[1:])
    assert "".join(delta.text for delta in deltas[1:]) == "Hi 🙂 ok" == reader.text
    assert len(deltas) > 3


def test_truncated_reply_has_not_ended():
    prompt = make(chain_of_modality=False)
    patches = concat(prompt.text_patches(prompt.encode("Hello there #")))
    found = parse_reply(prompt, patches, user_spoke=False)
    assert found.text == "Hello there #" and not found.ended
    cut = parse_reply(make(chain_of_modality=True), prompt.text_patches(prompt.encode("what is")), user_spoke=True)
    assert cut.text == "" and cut.transcript == "what is"


def test_invalid_bytes_do_not_hold_back_the_rest():
    prompt = make(chain_of_modality=False)
    broken = prompt.encode("🙂")[:1] * 12
    reader = ReplyParser(prompt, user_spoke=False)
    assert any(reader.read(token, speaking=False) for token in broken)
