"""Tools in the hermes format: system prompt, calls and results."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.tools import parse_tool_calls, partial_call_length, render_tool_turn, tools_system_prompt
from speechgpt2.types import Speech, Text, TextDelta, Tool, ToolCall, Transcript, Turn
from tests.lm.tiny import tiny_config, tiny_tokenizer

WEATHER = Tool("weather", "The weather in a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("weather", '{"city": "北京"}')
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'


def test_tools_system_prompt_lists_schemas():
    text = tools_system_prompt([WEATHER, Tool("bell", "", {})])
    lines = text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    first = {"name": "weather", "description": "The weather in a city.", "parameters": WEATHER.parameters}
    assert [json.loads(line)["function"]["name"] for line in lines] == ["weather", "bell"]
    assert json.loads(lines[0]) == {"type": "function", "function": first}
    assert text.startswith("# Tools\n\n") and '\n{"name": <function-name>, "arguments": <args-json-object>}\n' in text


def test_system_prompt_contains_the_tools():
    prompt = make()
    opened = prompt.tokenizer.decode(prompt.system_prompt("t2t", None, "Be kind.", [WEATHER]).text[0].tolist())
    assert opened == f"Be kind.\n\n{tools_system_prompt([WEATHER])}\n\n\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (WRITTEN, ["", CALL, ""]),
        (f"One moment.\n{WRITTEN}\n{WRITTEN} Done", ["One moment.\n", CALL, "\n", CALL, " Done"]),
        ('<tool_call>{"name": "bell"}</tool_call>', ["", ToolCall("bell", "{}"), ""]),
        (f"<tool_call> I mean {WRITTEN}", ["<tool_call> I mean ", CALL, ""]),
        (f"{WRITTEN}</tool_call> b", ["", CALL, "</tool_call> b"]),
        *((text, [text]) for text in ("", "Hello", "<tool_call>", "a </tool_call> b", '<tool_call>{"name": "bell"}')),
    ],
)
def test_tool_calls_are_parsed(text, parts):
    assert parse_tool_calls(text) == parts


def test_number_beyond_all_floats_becomes_the_largest():
    [_, call, _] = parse_tool_calls('<tool_call>{"name": "a", "arguments": {"b": -1e999}}</tool_call>')
    assert json.loads(call.arguments) == {"b": -sys.float_info.max}


@pytest.mark.parametrize(
    "inside",
    [
        *("", "{", "[]", "3", '"bell"', "{}", '{"name": 3}', '{"name": ""}', '{"name": "a", "arguments": [1]}'),
        *('{"name": "a", "arguments": {"b": NaN}}', "[" * 100_000),
        *('{"name": "a", "arguments": "{}"}', '{"name": "a", "arguments": {"b": "\\ud800"}}'),
    ],
)
def test_unreadable_calls_are_malformed(inside):
    text, broken = f"a <tool_call>\n{inside}</tool_call> b", ToolCall("", inside)
    assert broken.malformed and not CALL.malformed
    assert parse_tool_calls(text) == ["a ", broken, " b"]
    assert parse_tool_calls(text + WRITTEN) == ["a ", broken, " b", CALL, ""]
    assert render_tool_turn(Turn("assistant", (broken,))) == f"<tool_call>\n{inside}\n</tool_call>"


def test_partial_call_length():
    assert [partial_call_length(text) for text in ("", "a", "a<", "a<tool_cal", "a<tool_call>", WRITTEN[:-1])] == [
        *(0, 0, 1, 9, 11, len(WRITTEN) - 1)
    ]
    assert (
        partial_call_length(WRITTEN) == partial_call_length(WRITTEN + " ") == 0
        and partial_call_length(WRITTEN + "<") == 1
    )


def test_tool_turns_are_rendered():
    assert render_tool_turn(Turn("assistant", (CALL,))) == WRITTEN
    assert (
        render_tool_turn(Turn("assistant", (Text("Let me see."), CALL, CALL))) == f"Let me see.\n{WRITTEN}\n{WRITTEN}"
    )
    assert render_tool_turn(Turn("assistant", (ToolCall("bell", "loud {"),))) == (
        '<tool_call>\n{"name": "bell", "arguments": "loud {"}\n</tool_call>'
    )
    results = render_tool_turn(Turn("tool", (Text("sunny"), Text("25"))))
    assert results == "<tool_response>\nsunny\n</tool_response>\n<tool_response>\n25\n</tool_response>"
    assert (
        render_tool_turn(Turn.user("Hello"))
        is render_tool_turn(Turn.assistant("Hello"))
        is render_tool_turn(Turn("assistant", ()))
        is None
    )
    assert render_tool_turn(Turn("user", (CALL,))) is render_tool_turn(Turn("assistant", (Speech(text="Hi"),))) is None


# reading a reply


def make(chain_of_modality: bool = False, tools: bool = True) -> Prompt:
    return Prompt(tiny_config(chain_of_modality=chain_of_modality, tools=tools), tiny_tokenizer())


def read(prompt: Prompt, text: str, tools: bool = True, spoken: bool = False, speaking: bool = False, end: bool = True):
    """Events per token, and the parser; `text` is read character by character, then the turn's end."""
    reader = ReplyParser(prompt, spoken, tools)
    tokens = [token for character in text for token in prompt.encode(character)]
    if end:
        tokens += prompt.turn_end(speaking=False).text[0].tolist()
    events = [reader.read(token, speaking) for token in tokens]
    return [*events, [] if end else reader.finish()], reader


def flat(events: list) -> list:
    """Adjacent text events joined."""
    found: list = []
    for event in [event for some in events for event in some]:
        if isinstance(event, TextDelta) and found and isinstance(found[-1], str):
            found[-1] += event.text
        else:
            found.append(event.text if isinstance(event, TextDelta) else event)
    return found


@pytest.mark.parametrize("speaking", [False, True], ids=["written", "in the row of speech"])
def test_call_becomes_an_event_and_no_text(speaking):
    events, reader = read(make(), f"Let me see. \n{WRITTEN}\nDone.", speaking=speaking)
    assert flat(events) == ["Let me see.", CALL, " \n\nDone."]
    assert reader.text == "Let me see. \n\nDone." and reader.ended
    assert flat(read(make(), f"\n{WRITTEN}\n{WRITTEN}\n", speaking=speaking)[0]) == [CALL, CALL]


def test_text_before_a_call_streams():
    text = "It is <b>25</b> degrees < 30, # or so"
    events, _ = read(make(), text)
    assert flat(events) == [text] and sum(map(len, events)) > 20
    assert flat(events[: text.index("degrees")]) == ["It is <b>25</b>"]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (WRITTEN[:-3], [ToolCall("", WRITTEN[11:-3].strip())]),
        ("Well <tool_call>", ["Well", ToolCall("", "")]),
        ("a <tool", ["a <tool"]),
    ],
)
def test_call_that_is_cut_is_malformed_and_not_shown(text, events):
    assert flat(read(make(), text, end=False)[0]) == events


@pytest.mark.parametrize("end", [False, True])
def test_broken_call_is_malformed(end):
    events = flat(read(make(), 'a <tool_call>{"name": </tool_call> b', end=end)[0])
    assert events == ["a", ToolCall("", '{"name":'), "  b"]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (WRITTEN.removesuffix("\n</tool_call>"), [CALL]),
        (WRITTEN[:20], [ToolCall("", WRITTEN[11:20].strip())]),
        ("Well <tool_call>", ["Well", ToolCall("", "")]),
        ("a <tool", ["a <tool"]),
    ],
)
def test_end_of_the_turn_ends_a_call(text, events):
    assert flat(read(make(), text)[0]) == events


def test_prompt_is_unchanged_without_tools():
    text = f" \n a {WRITTEN} b "
    for prompt, tools in ((make(), False), (make(tools=False), True)):
        assert flat(read(prompt, text, tools=tools)[0]) == [text]
    taught, other = make(), make(tools=False)
    assert torch.equal(other.system_prompt("s2s", tools=[WEATHER]).text, other.system_prompt("s2s").text)
    assert torch.equal(taught.system_prompt("s2s", tools=[]).text, other.system_prompt("s2s").text)
    assert "weather" in taught.tokenizer.decode(taught.system_prompt("s2s", tools=[WEATHER]).text[0].tolist())


def test_call_tags_may_be_special_tokens():
    """In Qwen2.5's tokenizer they are tokens, but not special ones."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    config = tiny_config(tools=True, vocab=tokenizer.get_vocab_size())
    prompt = Prompt(config, tokenizer)
    reader, tokens = ReplyParser(prompt, user_spoke=False, tools=True), prompt.encode(WRITTEN)
    assert tokens[0] == tokenizer.token_to_id("<tool_call>") and tokens[-1] == tokenizer.token_to_id("</tool_call>")
    assert flat([reader.read(token, False) for token in [*tokens, prompt.special_ids.eos]]) == [CALL]


def test_call_in_a_transcript_is_text():
    prompt = make(chain_of_modality=True)
    reader = ReplyParser(prompt, user_spoke=True, tools=True)
    tokens = [
        *prompt.encode(WRITTEN),
        prompt.special_ids.transcript_end,
        *prompt.encode(f"Yes {WRITTEN}"),
        prompt.special_ids.speech_start,
    ]
    events = [reader.read(token, False) for token in tokens] + [reader.read(prompt.encode("Yes")[0], True)]
    assert flat([*events, reader.read(prompt.special_ids.eos, False)]) == [Transcript(WRITTEN), "Yes", CALL]
