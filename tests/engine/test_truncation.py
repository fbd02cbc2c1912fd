"""Truncation: what stays of a reply that was cut short."""

import pytest
import torch

from speechgpt2.engine.truncation import speech_patches, truncated_reply
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import AlignedSpeech, concat
from tests.lm.tiny import tiny_config, tiny_tokenizer

WORDS = ["Hello", " there", ", what", " is"]


def prompts():
    return [
        Prompt(tiny_config(chain_of_modality=chain_of_modality), tiny_tokenizer())
        for chain_of_modality in (False, True)
    ]


def spoken(prompt):
    """Four words, each at its patch and its sound in the patch after it, over seven patches; codes tell the patch."""
    codes = torch.arange(7).repeat_interleave(3)[:, None].expand(-1, 3).contiguous()
    tokens = [prompt.special_ids.filler] * 7
    for place, word in zip((0, 2, 3, 5), WORDS, strict=True):
        tokens[place] = prompt.encode(word)[0]
    return AlignedSpeech(codes, tokens)


def a_reply(prompt, transcript=None):
    return prompt.reply("".join(WORDS), spoken(prompt), transcript)


def words_of(prompt, patches):
    return prompt.tokenizer.decode(patches.text[0].tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("prompt", prompts(), ids=["plain", "draft"])
@pytest.mark.parametrize("played_patches", range(1, 7))
def test_truncated_reply_has_only_played_words_and_codes(prompt, played_patches):
    kept = truncated_reply(prompt, a_reply(prompt, "what"), True, played_patches)
    codes = kept.codes[0][kept.codes[0, :, 0, 0] != prompt.config.no_speech]
    assert codes[:, 0, 0].tolist() == list(range(played_patches)) and speech_patches(prompt, kept) == played_patches
    played = [word for place, word in zip((0, 2, 3, 5), WORDS, strict=True) if place + 1 < played_patches]
    named = [prompt.encode(word)[0] for word in played]
    tokens = kept.text[0].tolist()
    for word in WORDS:
        token = prompt.encode(word)[0]
        assert (token in tokens) == (token in named), (word, played_patches)


@pytest.mark.parametrize("prompt", prompts(), ids=["plain", "draft"])
def test_truncated_reply_is_properly_closed(prompt):
    kept = truncated_reply(prompt, a_reply(prompt), False, 4)
    ids, tokens = prompt.special_ids, kept.text[0].tolist()
    assert tokens.count(ids.speech_start) == tokens.count(ids.speech_end) == 1
    end = prompt.turn_end(speaking=True).text[0].tolist()
    assert tokens[-len(end) :] == end


def test_nothing_played_leaves_no_reply():
    for prompt in prompts():
        assert truncated_reply(prompt, a_reply(prompt), False, 0) is None
        assert truncated_reply(prompt, prompt.text_patches(prompt.encode("Hello")), False, 5) is None


def test_truncated_draft_keeps_its_transcript():
    prompt = prompts()[1]
    kept = truncated_reply(prompt, a_reply(prompt, "weather"), True, 4)
    expected = AlignedSpeech(spoken(prompt).codes[:12], [*spoken(prompt).tokens[:3], prompt.special_ids.last_filler])
    wanted = prompt.reply("Hello there", expected, "weather")
    assert torch.equal(kept.text, wanted.text) and torch.equal(kept.codes, wanted.codes)


def test_unfinished_reply_can_be_truncated():
    """Cut while it is being made: there is no end to find."""
    prompt = prompts()[1]
    whole = a_reply(prompt)
    start = whole.text[0].tolist().index(prompt.special_ids.speech_start)
    unfinished = concat(type(whole)(whole.text[:, : start + 4], whole.codes[:, : start + 4]))
    kept = truncated_reply(prompt, unfinished, False, 9)
    assert speech_patches(prompt, kept) == 3 and words_of(prompt, kept).startswith("Hello")
