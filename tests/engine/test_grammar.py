"""Constrained decoding in live sessions: rows do not touch each other, and a roll-back resets the grammar."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.errors import UserError
from speechgpt2.lm.model import SpeechLM
from speechgpt2.types import ReplyDone, Tool, ToolCall, Turn
from tests import needs
from tests.engine.results import context_of, events
from tests.engine.test_tools import WRITTEN, end, make, rest, text, words
from tests.engine.tiny import noise, run, say, talk, tiny_engine, tiny_lm

needs.module("llguidance", "grammar")

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
WEATHER = Tool("weather", "The weather.", {**CITY, "additionalProperties": False})
CALLS = SessionSettings(speak=False, tools=(WEATHER,), require_tool=True, max_patches=400, seed=4)
FREE = SessionSettings(speak=False, max_patches=60, seed=9)
JSON = SessionSettings(speak=False, response_schema={**CITY, "additionalProperties": False}, max_patches=400, seed=2)


def replies(*settings, **options):
    """The events and contexts of sessions that reply at the same time."""
    engine = tiny_engine(tiny_lm(SpeechLM, tools=True, **options), context=4096)
    sessions = [engine.open(one) for one in settings]
    for session in sessions:
        session.add_turn(Turn.user("weather?"))
        session.respond()
    found = talk(engine, sessions)
    return [(found[session], context_of(session)) for session in sessions]


def equal(a, b):
    return a[0] == b[0] and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def test_constrained_row_equals_itself_alone_and_leaves_others_alone():
    call, free, json_text = replies(CALLS, FREE, JSON)
    assert [event for event in call[0] if isinstance(event, ToolCall)] and call[0][-1] == ReplyDone("stop")
    assert equal(replies(CALLS)[0], call)
    assert equal(replies(FREE)[0], free)
    assert equal(replies(JSON)[0], json_text)


def test_written_reply_follows_a_schema():
    import json

    [(found, _)] = replies(JSON)
    assert list(json.loads(words(found))) == ["city"] and rest(found) == [ReplyDone("stop")]


def test_draft_head_and_grammar_work_together():
    [(found, _)] = replies(CALLS, chain_of_modality=True, draft_tokens=3)
    assert any(isinstance(event, ToolCall) for event in found)


def test_rollback_resets_the_grammar():
    engine = tiny_engine(tiny_lm(SpeechLM, tools=True), context=4096)
    session = engine.open(CALLS)
    say(session, noise(0.4))
    session.respond()
    run(engine, until=lambda: session.slot.generation is not None and session.slot.generation.stop.patches > 3)
    session.rollback()
    session.append_audio(noise(0.2, seed=1))
    session.end_turn()
    session.respond()
    found = talk(engine, [session])[session]
    assert any(isinstance(event, ToolCall) for event in found) and found[-1] == ReplyDone("stop")


def test_refused_token_is_sampled_again():
    engine, prompt, script = make()
    session = engine.open(SessionSettings(speak=False, tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    session.respond()
    begin, rest_of_call = WRITTEN[: WRITTEN.index("{")], WRITTEN[WRITTEN.index("{") :]
    script += text(prompt, begin) + text(prompt, "H") + text(prompt, rest_of_call) + end(prompt)
    found = talk(engine, [session])[session]
    assert rest(found) == [ToolCall("weather", '{"city": "Paris"}'), ReplyDone("stop")]
    assert "H" not in prompt.tokenizer.decode(context_of(session).text[0].tolist()).split("<tool_call>\n")[-1]


def test_schema_that_cannot_be_followed_is_refused_at_once():
    engine = tiny_engine(tiny_lm(SpeechLM))
    with pytest.raises(UserError, match="cannot be followed"):
        engine.open(SessionSettings(response_schema={"type": "nothing"}))
    session = engine.open(SessionSettings())
    with pytest.raises(UserError, match="cannot be followed"):
        session.configure(SessionSettings(response_schema={"type": "nothing"}))
    assert events(session) == []
