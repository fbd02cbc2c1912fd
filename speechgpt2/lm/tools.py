"""Tools in the form that Qwen2.5's chat models speak, known as hermes; nothing else knows it.

tools_system_prompt(tools)      what the system line says of them, a JSON schema each, between <tools> and </tools>
tool_call_prefix(name)      how a call begins, of the tool of this name or of any
parse_tool_calls(text)      a reply's text and the calls in it: <tool_call>{"name": …, "arguments": {…}}</tool_call>
render_tool_turn(turn)    the other way round, for a turn of before; or what tools gave, to stand in a user's turn:
                 <tool_response>…</tool_response> each
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from speechgpt2.types import Text, Tool, ToolCall, Turn

BEGIN, END = "<tool_call>", "</tool_call>"
# The words that Qwen2.5 was trained with.
TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def tools_system_prompt(tools: Sequence[Tool]) -> str:
    """What a system line says of `tools`."""
    functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
    return TOLD.format(tools="\n".join(_json({"type": "function", "function": function}) for function in functions))


def tool_call_prefix(name: str | None = None) -> str:
    """The beginning of a call, up to where its tool's name, or its arguments, are to be written."""
    call = '{"name": "' if name is None else f'{{"name": {_json(name)}, "arguments":'
    return f"{BEGIN}\n{call}"


def parse_tool_calls(text: str) -> list[str | ToolCall]:
    """The text before, between and after the calls in `text`, and the calls: text comes first and last, even if empty.

    What stands between the tags and is no call (broken JSON, no name) stays text.
    """
    parts: list[str | ToolCall] = []
    shown = ""
    while (end := text.find(END)) >= 0:
        start, after = text.rfind(BEGIN, 0, end), end + len(END)
        call = None if start < 0 else _call(text[start + len(BEGIN) : end])
        if call is None:
            shown += text[:after]
        else:
            parts += [shown + text[:start], call]
            shown = ""
        text = text[after:]
    return [*parts, shown + text]


def partial_call_length(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a call."""
    start = text.rfind(BEGIN)
    if start >= 0 and END not in text[start:]:
        return len(text) - start
    return next(n for n in range(len(BEGIN) - 1, -1, -1) if text.endswith(BEGIN[:n]))


def render_tool_turn(turn: Turn) -> str | None:
    """The text of a turn that calls tools, or of what they gave; None for any other turn."""
    if turn.role == "tool":
        given = [segment.text for segment in turn.segments if isinstance(segment, Text)]
        return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in given)
    if turn.role != "assistant" or not any(isinstance(segment, ToolCall) for segment in turn.segments):
        return None
    parts = [_written(segment) if isinstance(segment, ToolCall) else segment.text for segment in turn.segments]
    return "\n".join(part for part in parts if part)


def _call(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
        name, arguments = value["name"], value.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + written).encode()  # half a surrogate pair is no text that could be sent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ToolCall(name, written)


def _written(call: ToolCall) -> str:
    """Arguments that are no JSON are told as they are."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{BEGIN}\n{_json({'name': call.name, 'arguments': arguments})}\n{END}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
