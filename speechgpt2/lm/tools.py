"""Tool calls in the "hermes" format of Qwen2.5's chat template. Only this module knows the format.

The system prompt lists tools as JSON schemas between <tools> and </tools>. A reply calls one with
<tool_call>{"name": …, "arguments": {…}}</tool_call>, and a result is a user's turn of <tool_response>…</tool_response>.
Source: https://huggingface.co/Qwen/Qwen2.5-7B-Instruct (tokenizer_config.json).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from speechgpt2.types import Text, Tool, ToolCall, Turn

BEGIN, END = "<tool_call>", "</tool_call>"
# The text that Qwen2.5 was trained with.
TOOLS_SYSTEM_PROMPT = """# Tools

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
    """Return the part of a system prompt that lists `tools`."""
    functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
    lines = [_json({"type": "function", "function": function}) for function in functions]
    return TOOLS_SYSTEM_PROMPT.format(tools="\n".join(lines))


def tool_call_prefix(name: str | None = None) -> str:
    """Return the beginning of a call, up to the tool's name, or with `name` up to its arguments."""
    call = '{"name": "' if name is None else f'{{"name": {_json(name)}, "arguments":'
    return f"{BEGIN}\n{call}"


def parse_tool_calls(text: str) -> list[str | ToolCall]:
    """Split `text` into the calls and the text before, between and after them.

    Text comes first and last, even if it is empty. What is not a call between the tags (broken JSON, no name) is a
    malformed one.
    """
    parts: list[str | ToolCall] = []
    shown = ""
    while (end := text.find(END)) >= 0:
        start, after = text.rfind(BEGIN, 0, end), end + len(END)
        if start < 0:
            shown += text[:after]
        else:
            parts += [shown + text[:start], _parse_call(text[start + len(BEGIN) : end])]
            shown = ""
        text = text[after:]
    return [*parts, shown + text]


def close_call(text: str) -> str:
    """Return the text of a reply that is over, in which a last call may lack its end tag, with that tag."""
    return text + END if text.rfind(BEGIN) > text.rfind(END) else text


def partial_call_length(text: str) -> int:
    """Return how many characters at the end of `text` may begin a call."""
    start = text.rfind(BEGIN)
    if start >= 0 and END not in text[start:]:
        return len(text) - start
    return next(n for n in range(len(BEGIN) - 1, -1, -1) if text.endswith(BEGIN[:n]))


def render_tool_turn(turn: Turn) -> str | None:
    """Return the text of a turn that calls tools or holds their results; None for any other turn."""
    if turn.role == "tool":
        results = [segment.text for segment in turn.segments if isinstance(segment, Text)]
        return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in results)
    if turn.role != "assistant" or not any(isinstance(segment, ToolCall) for segment in turn.segments):
        return None
    parts = [_render_call(segment) if isinstance(segment, ToolCall) else segment.text for segment in turn.segments]
    return "\n".join(part for part in parts if part)


def _parse_call(text: str) -> ToolCall:
    malformed = ToolCall("", text.strip())
    try:
        value = json.loads(text, parse_float=_finite)
        name, arguments = value["name"], value.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return malformed
        encoded = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + encoded).encode()  # half a surrogate pair cannot be sent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return malformed
    return ToolCall(name, encoded)


def _finite(text: str) -> float:
    """The number, or the largest one instead of one beyond all floats, such as 1e999, which is valid JSON."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _render_call(call: ToolCall) -> str:
    """Return the text of a call. Arguments that are not JSON are passed as a string."""
    if call.malformed:
        return f"{BEGIN}\n{call.arguments}\n{END}"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{BEGIN}\n{_json({'name': call.name, 'arguments': arguments})}\n{END}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
