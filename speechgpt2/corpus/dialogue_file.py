"""Reads dialogues for fine-tuning: one JSON object per line, with chat messages as in the OpenAI API.

    {"id": "1", "lang": "en", "licence": "own", "tools": [{"name": "lamp", "description": "…", "parameters": {…}}],
     "messages": [
       {"role": "system", "content": "You are a porter."},
       {"role": "user", "content": "What's three plus five?", "audio": "audio/1-question.wav"},
       {"role": "assistant", "content": "Three plus five is eight.", "audio": "audio/1-answer.wav"}]}

`audio` is relative to the file; a message without it is text only. `content` of a spoken message is its transcript. The
keys `words` ([[text, start, end], …]) and `speaker` of a message are optional. An assistant's message may hold
`tool_calls` ([{"name": …, "arguments": {…}}]), and a message of role "tool" holds a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from speechgpt2.corpus.files import FileTree, decode_audio
from speechgpt2.corpus.metadata import record_of
from speechgpt2.corpus.store import CorpusItem
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.corpus.formats import Item

ROLES = ("user", "assistant", "tool")
CHANNEL = {"user": 0, "tool": 0, "assistant": 1}


def count(tree: FileTree, name: str) -> int:
    """Return the number of lines of a file."""
    with tree.open(name) as file:
        return sum(1 for _ in file)


def items(tree: FileTree, name: str, numbers: range) -> Iterator[Item]:
    """Yield the turns of the dialogues on some lines. Raises `UserError`, which names the line."""
    folder = PurePosixPath(name).parent
    for number, line in enumerate(islice(tree.text(name).splitlines(), numbers.start, numbers.stop), numbers.start):
        if not line.strip():
            continue
        where = f"{tree.path}: {name}, line {number + 1}"
        try:
            yield from _turns(json.loads(line), number, tree, folder)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg})") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _turns(dialogue: Any, number: int, tree: FileTree, folder: PurePosixPath) -> Iterator[Item]:
    if not isinstance(dialogue, dict) or not isinstance(dialogue.get("messages"), list):
        raise UserError("needs a key 'messages' with a list")
    id = str(dialogue.get("id", number))
    common = {key: value for key, value in dialogue.items() if key not in ("messages", "tools")}
    messages = [_message(m) for m in dialogue["messages"]]
    system = " ".join(m["content"] for m in messages if m["role"] == "system")
    for turn, message in enumerate(m for m in messages if m["role"] != "system"):
        extra: dict[str, Any] = {"conversation": id, "channel": CHANNEL[message["role"]], "cut": False}
        if turn == 0:
            extra |= {"system": system, "tools": _tools(dialogue.get("tools", []))}
        if message.get("tool_calls"):
            extra["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        metadata = {**common, **message, "text": message["content"]}
        record = record_of(f"{id}-{turn:02d}", metadata, source=id, extra=extra)
        pcm = None
        if name := message.get("audio"):
            pcm = decode_audio(tree.read(str(folder / name)), name)
        yield CorpusItem(record, pcm)


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ("system", *ROLES):
        raise UserError(f"each message needs a role, one of system, {', '.join(ROLES)}")
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise UserError("the content of a message must be text; audio has a key of its own")
    if not content.strip() and not message.get("tool_calls"):
        raise UserError(f"a message of the {message['role']} is empty; give its text, even if it has audio")
    return {**message, "content": content}


def _call(call: Any) -> dict[str, str]:
    """Return name and arguments, as JSON text, of a call in OpenAI's form or without its wrapping."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments", {})
    if not isinstance(function.get("name"), str):
        raise UserError("each tool call needs a name and arguments")
    return {
        "name": function["name"],
        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
    }


def _tools(tools: Any) -> list[dict[str, Any]]:
    functions = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    if not all(isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in functions):
        raise UserError("each tool needs a name, a description and parameters")
    return [{"description": "", "parameters": {"type": "object"}, **tool} for tool in functions]
