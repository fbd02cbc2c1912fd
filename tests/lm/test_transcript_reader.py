"""What a reply says to a transcript that it is not sure of."""

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.fixed_words import NOT_UNDERSTOOD
from speechgpt2.lm.config import PromptConfig
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.lm.transcript_reader import TranscriptReader, confidence
from speechgpt2.types import TextDelta, Transcript
from tests.lm.tiny import random_patches, tiny_config, tiny_lm, tiny_tokenizer

LIMIT = -0.5


def read(transcript: str, log_prob: float, speak: bool = True, limit: float | None = LIMIT):
    """Read a transcript whose tokens all have `log_prob`; returns the parser and what replaces the reply."""
    prompt = Prompt(tiny_config(chain_of_modality=True, min_confidence=limit), tiny_tokenizer())
    parser = ReplyParser(prompt, user_spoke=True)
    reader, replacement = TranscriptReader(parser, speak), None
    for token in [*prompt.encode(transcript), prompt.special_ids.transcript_end]:
        assert replacement is None
        replacement = reader.read(token, log_prob)
        if replacement is None:
            parser.read(token, speaking=False)
    return parser, replacement


@pytest.mark.parametrize(("transcript", "lang"), [("what is the weather", "en"), ("今天天气怎么样", "zh")])
def test_unsure_transcript_is_not_answered(transcript, lang):
    parser, replacement = read(transcript, -0.6)
    wanted = parser.prompt.tts_prefix(NOT_UNDERSTOOD[lang], transcript)
    assert replacement.text.tolist() == wanted.text.tolist()
    assert read(transcript, -0.4)[1] is None


def test_client_gets_the_transcript_and_the_fixed_answer():
    parser, _ = read("what is the weather", -0.6)
    events = parser.read(parser.prompt.special_ids.speech_start, speaking=False)
    assert events == [Transcript("what is the weather"), TextDelta(NOT_UNDERSTOOD["en"])]


def test_written_reply_goes_on_after_the_fixed_answer():
    parser, replacement = read("what is the weather", -0.6, speak=False)
    prompt = parser.prompt
    wanted = concat(prompt.transcript("what is the weather"), prompt.text_patches(prompt.encode(NOT_UNDERSTOOD["en"])))
    assert replacement.text.tolist() == wanted.text.tolist()


def test_model_answers_an_empty_transcript_itself():
    assert read("", -9.0)[1] is None


def test_model_without_a_limit_answers_everything():
    assert read("what is the weather", -9.0, limit=None)[1] is None


def test_confidence_is_that_of_the_least_certain_tokens():
    assert confidence([-0.1, -1.0, 0.0, -3.0, 0.0, -2.0]) == pytest.approx(-2.0)
    assert confidence([-1.0]) == -1.0


def test_limit_must_be_a_log_probability():
    with pytest.raises(UserError, match="min_confidence"):
        PromptConfig(min_confidence=0.5)


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_sampled_text_has_its_log_probability(limit):
    lm = tiny_lm(chain_of_modality=True, min_confidence=limit)
    hidden, state = lm.prefill(random_patches(lm, 2, 9), lm.init_state(2, 40))
    sampled = lm.sample(hidden, state, SamplingParams.for_batch(2))
    wanted = lm.text_logits(hidden).log_softmax(-1).max(-1).values  # with chain of modality, text is greedy
    torch.testing.assert_close(sampled.log_probs, torch.zeros(2) if limit is None else wanted)
