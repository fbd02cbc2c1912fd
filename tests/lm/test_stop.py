"""The stop rule of a reply."""

import pytest

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.stop import CLOSING_ROOM, StopRule
from tests.lm.tiny import tiny_config, tiny_tokenizer


def rule(max_patches=9, speak=True, in_speech=False, chain_of_modality=True) -> StopRule:
    prompt = Prompt(tiny_config(chain_of_modality=chain_of_modality), tiny_tokenizer())
    return StopRule(ReplyParser(prompt, user_spoke=False), max_patches, speak, in_speech)


def follow(stop: StopRule, *tokens: int, room: int | None = None):
    """Advance by tokens, with codes while within speech, and parse them; returns the last continuation."""
    continuation = None
    for token in tokens:
        speaking = bool(stop.speech_depth) and token != stop.parser.prompt.special_ids.speech_end
        if (continuation := stop.advance(token, speaking, room)) is None:
            stop.parser.read(token, speaking)
    return continuation


@pytest.mark.parametrize("speak", [False, True])
def test_eos_stops(speak):
    stop = rule(speak=speak, in_speech=speak)
    ids = stop.parser.prompt.special_ids
    follow(stop, *([ids.filler, ids.speech_end] if speak else stop.parser.prompt.encode("it")))
    assert stop.reason is None
    assert follow(stop, ids.eos) is None and stop.reason == "stop"


def test_reply_without_its_speech_goes_on_with_it():
    stop = rule()
    prompt = stop.parser.prompt
    continuation = follow(stop, *prompt.encode("Hello"), prompt.special_ids.eos)
    assert continuation.text.tolist() == prompt.tts_prefix("Hello").text.tolist()
    assert (stop.reason, stop.speech_depth) == (None, 1)
    follow(stop, prompt.special_ids.filler, prompt.special_ids.speech_end)
    assert follow(stop, prompt.special_ids.eos) is None and stop.reason == "stop"


@pytest.mark.parametrize("text", ["", "Hello"])
def test_reply_with_nothing_to_speak_stops(text):
    stop = rule(chain_of_modality=not text)
    assert follow(stop, *stop.parser.prompt.encode(text), stop.parser.prompt.special_ids.eos) is None
    assert stop.reason == "stop"


def test_speech_that_was_not_asked_for_stops():
    stop = rule(speak=False)
    follow(stop, stop.parser.prompt.special_ids.speech_start)
    assert stop.reason == "stop"


def test_length_stops():
    stop = rule(max_patches=3)
    word = stop.parser.prompt.encode("it")[0]
    follow(stop, word, word)
    assert stop.reason is None
    follow(stop, word)
    assert (stop.reason, stop.patches) == ("length", 3)
    assert rule(max_patches=0).reason == "length"


def test_last_patch_may_be_eos():
    stop = rule(max_patches=2)
    word = stop.parser.prompt.encode("it")[0]
    assert follow(stop, word, stop.parser.prompt.special_ids.eos) is None  # no room for the missing speech
    assert stop.reason == "stop"


def test_full_context_stops():
    stop = rule()
    word = stop.parser.prompt.encode("it")[0]
    follow(stop, word, room=CLOSING_ROOM + 1)
    assert stop.reason is None
    follow(stop, word, room=CLOSING_ROOM)
    assert stop.reason == "length"
