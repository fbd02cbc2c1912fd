"""Constrained decoding: every tool call of any model is valid, and free text stays as it is."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import torch

from speechgpt2.bench.random_schemas import random_schema, random_tool
from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.sampling import SamplingParams, unpack_bits
from speechgpt2.lm.tools import parse_tool_calls, render_tool_turn, tool_call_prefix
from speechgpt2.types import Patches, Tool, ToolCall, Turn
from tests import needs
from tests.lm.tiny import tiny_lm

needs.module("llguidance", "grammar")
jsonschema = needs.module("jsonschema", "assistant")

BATCH = 50
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
WEATHER = Tool("weather", "The weather.", {**CITY, "additionalProperties": False})
TIDES = Tool("tides", "The tides.", {**CITY, "additionalProperties": False})
CALL = render_tool_turn(Turn("assistant", (ToolCall("weather", '{"city": "Paris"}'),)))


def write(lm, constraint, seed=0, most=1500):
    """The text of a reply of random weights, and whether it has ended."""
    state = lm.init_state(1, most + 64)
    hidden, state = lm.prefill(lm.prompt.user_text("weather?"), state)
    sampling = SamplingParams.for_batch(1, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
    tokens = [int(step.patches.text) for step in generate(lm, hidden, state, sampling, most, constraint)]
    ended = tokens[-1] == lm.prompt.special_ids.eos
    return lm.prompt.tokenizer.decode(tokens[: len(tokens) - ended]), ended


def write_batch(lm, constraints, most=1500):
    """The texts of replies of random weights, a row each, and whether they have ended."""
    rows, eos = len(constraints), lm.prompt.special_ids.eos
    state, question = lm.init_state(rows, most + 64), lm.prompt.user_text("weather?")
    hidden, state = lm.prefill(Patches(*(part.expand(rows, *part.shape[1:]) for part in question)), state)
    sampling, tokens = SamplingParams.for_batch(rows, temperature=1.0, top_k=0, top_p=1.0), [[] for _ in range(rows)]
    active = torch.ones(rows, dtype=torch.bool)
    while active.any() and len(tokens[int(active.nonzero()[0])]) < most:
        bits = torch.full((rows, -(-lm.config.backbone.vocab // 32)), -1, dtype=torch.int32)
        for row in active.nonzero().flatten().tolist():
            bits[row] = torch.tensor(constraints[row].allowed())
        patches = lm.sample(hidden, state, sampling, allowed=bits).patches
        for row in active.nonzero().flatten().tolist():
            token = int(patches.text[row])
            assert constraints[row].accept(token)
            active[row] = token != eos
            tokens[row] += [token] * bool(active[row])
        after, state = lm.prefill(patches, state, active.long())
        hidden = torch.where(active[:, None], after, hidden)
    return [lm.prompt.tokenizer.decode(row) for row in tokens], (~active).tolist()


def calls_of(text):
    return [part for part in parse_tool_calls(text) if isinstance(part, ToolCall)]


def allows(constraint, token):
    allowed = constraint.allowed()
    return allowed is None or bool(allowed[token // 32] >> (token % 32) & 1)


def feed(constraint, prompt, text):
    """Take the tokens of a text up to the first that is refused; returns how many were taken."""
    tokens = prompt.encode(text)
    for count, token in enumerate(tokens):
        if not constraint.accept(token):
            return count
    return len(tokens)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(tools=True)


@pytest.mark.parametrize("schemas", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_schemas_and_random_weights_give_no_invalid_call(schemas):
    """A call that is cut at the maximal length would be no call; none is here, since all values are bounded."""
    lm, generator = tiny_lm(seed=3, tools=True), random.Random(schemas)
    for first in range(0, schemas, BATCH):
        tools = [random_tool(first + n, generator) for n in range(min(BATCH, schemas))]
        compiled = [lm.prompt.grammars.constraint([tool, WEATHER], required=tool.name) for tool in tools]
        for tool, text, ended in zip(tools, *write_batch(lm, compiled), strict=True):
            assert ended, text
            calls = calls_of(text)
            assert calls and "".join(p for p in parse_tool_calls(text) if isinstance(p, str)).split() == ["###"]
            for call in calls:
                assert call.name == tool.name
                jsonschema.Draft202012Validator(tool.parameters).validate(json.loads(call.arguments))


def test_random_response_schemas_give_valid_json(lm):
    generator = random.Random(5)
    for number in range(20):
        schema = random_schema(generator)
        text, ended = write(lm, lm.prompt.grammars.constraint(schema=schema), seed=number)
        assert ended
        jsonschema.Draft202012Validator(schema).validate(json.loads(text.removesuffix(" ###\n")))


def test_named_tool_is_the_only_one(lm):
    text, _ = write(lm, lm.prompt.grammars.constraint([WEATHER, TIDES], required="tides"))
    assert {call.name for call in calls_of(text)} == {"tides"}


def test_required_call_goes_on_after_a_given_beginning(lm):
    prefix = lm.prompt.encode(tool_call_prefix("weather"))
    constraint = lm.prompt.grammars.constraint([WEATHER, TIDES], required="weather", prefix=prefix)
    assert feed(constraint, lm.prompt, ' {"city": "Paris"}}\n</tool_call> ###\n') > 0
    assert allows(constraint, lm.prompt.special_ids.eos)


def test_free_text_is_free_until_a_call_begins(lm):
    prompt, ids = lm.prompt, lm.prompt.special_ids
    constraint = prompt.grammars.constraint([WEATHER])
    assert constraint.allowed() is None
    feed(constraint, prompt, "Hello, { <tool> 25.")
    for token in (ids.speech_start, ids.filler, ids.speech_end):
        assert constraint.accept(token) and constraint.allowed() is None
    feed(constraint, prompt, "\n<tool_call>")
    assert constraint.allowed() is not None
    assert not allows(constraint, ids.eos) and not allows(constraint, ids.filler)
    assert feed(constraint, prompt, CALL.removeprefix("<tool_call>")) == len(
        prompt.encode(CALL.removeprefix("<tool_call>"))
    )
    assert constraint.allowed() is None and constraint.accept(ids.eos)


def test_token_that_goes_astray_is_refused_and_sampled_again(lm):
    prompt = lm.prompt
    constraint = prompt.grammars.constraint([WEATHER])
    feed(constraint, prompt, "<tool_call>\n")
    [wrong], [right] = prompt.encode("H"), prompt.encode("{")
    assert not constraint.accept(wrong) and not constraint.accept(prompt.special_ids.eos)
    assert not allows(constraint, wrong) and allows(constraint, right) and constraint.accept(right)


def test_transcript_is_free(lm=None):
    lm = tiny_lm(chain_of_modality=True, tools=True)
    constraint = lm.prompt.grammars.constraint([WEATHER], required=True, after_transcript=True)
    feed(constraint, lm.prompt, "weather in Paris")
    assert constraint.allowed() is None and constraint.accept(lm.prompt.special_ids.transcript_end)
    assert constraint.allowed() is not None and feed(constraint, lm.prompt, CALL) == len(lm.prompt.encode(CALL))


def test_each_reply_has_a_state_of_its_own(lm):
    first = lm.prompt.grammars.constraint([WEATHER], required=True)
    feed(first, lm.prompt, CALL)
    second = lm.prompt.grammars.constraint([WEATHER], required=True)
    assert feed(second, lm.prompt, CALL) == len(lm.prompt.encode(CALL))


def test_drafted_tokens_are_checked():
    lm = tiny_lm(chain_of_modality=True, draft_tokens=3, tools=True)
    text, ended = write(lm, lm.prompt.grammars.constraint([WEATHER], required=True))
    assert ended and calls_of(text)


def test_nothing_is_constrained_without_tools_or_schema(lm):
    assert lm.prompt.grammars.constraint() is None
    assert lm.prompt.grammars.constraint([WEATHER], required="tides") is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "object", "properties": 3},
        {"$ref": "#/$defs/missing"},
        {"uniqueItems": True, "type": "array"},
    ],
)
def test_schema_that_cannot_be_followed_is_one_clear_line(lm, schema):
    with pytest.raises(UserError, match="the JSON schema cannot be followed") as error:
        lm.prompt.grammars.constraint(schema=schema)
    assert "\n" not in str(error.value)


def test_tool_with_a_schema_that_cannot_be_enforced_is_held_to_be_json(lm, caplog):
    tool = Tool("odd", "Odd.", {"type": "object", "properties": {"a": {"type": "nothing"}}})
    constraint = lm.prompt.grammars.constraint([tool], required=True)
    assert feed(constraint, lm.prompt, '<tool_call>\n{"name": "odd", "arguments": {"b": 1}}\n</tool_call>')
    assert "only held to be JSON" in caplog.text


def test_bits_are_unpacked():
    words = torch.from_numpy(np.array([[5, -1], [-(2**31), 0]], np.int32))
    bits = unpack_bits(words, 40)
    assert bits[0, :4].tolist() == [True, False, True, False] and bits[0, 32:].all()
    assert bits[1].nonzero().flatten().tolist() == [31]


def test_benchmark_prints_the_cost(capsys):
    from speechgpt2.bench import grammar

    grammar.main("mini", schemas=3)
    printed = capsys.readouterr().out
    assert "Constrained decoding" in printed and re.search(r"invalid", printed)
