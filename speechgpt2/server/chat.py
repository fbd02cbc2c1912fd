"""Chat completions: the request's messages as turns, and what comes of them in OpenAI's shape, whole or in pieces."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.server import containers
from speechgpt2.server.conversation import new_id
from speechgpt2.server.problems import Problem
from speechgpt2.server.response import Heard, Usage
from speechgpt2.server.wire import MaxTokens, Message, Session, Tool, ToolChoice, check_choice
from speechgpt2.types import AudioDelta, Event, ReplyDone, Speech, Text, TextDelta, ToolCall, Turn

AUDIO_LIFE = 3600  # seconds for which a client may name an answer's audio by its id instead of repeating it


class InputAudio(Message):
    data: str
    format: str = "wav"


class TextPart(Message):
    type: Literal["text"]
    text: str


class AudioPart(Message):
    type: Literal["input_audio"]
    input_audio: InputAudio


class NamedAudio(Message):
    id: str


class Function(Message):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class FunctionTool(Message):
    type: Literal["function"]
    function: Function


class Called(Message):
    name: str
    arguments: str


class FunctionCall(Message):
    """An earlier answer's call of a function. Its id is the client's affair: results come in the order of the calls."""

    function: Called


class ChatMessage(Message):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] | None = None
    audio: NamedAudio | None = None  # an earlier answer of ours
    tool_calls: list[FunctionCall] | None = None


class OutputAudio(Message):
    voice: str | dict[str, Any] = "default"
    format: str = "wav"


class StreamOptions(Message):
    include_usage: bool = False


class ChatRequest(Message):
    """What is asked; unknown fields are ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: OutputAudio | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None

    @property
    def speaks(self) -> bool:
        """Whether the answer is spoken."""
        return "audio" in (self.modalities or [])

    @property
    def format(self) -> str:
        """Of the answer's sound. Errors: `Problem`."""
        format = self.audio.format if self.audio is not None else "pcm16" if self.stream else "wav"
        if self.stream and format not in ("pcm16", "pcm"):
            raise Problem(400, "audio.format must be 'pcm16' when streaming.", "invalid_value", "audio.format")
        try:
            containers.media_type(format)
        except UserError as error:
            raise Problem(400, f"audio.{error}.", "invalid_value", "audio.format") from None
        return format

    def session(self, base: Session) -> Session:
        """A session's settings for this answer. Errors: `Problem`."""
        system = [_words(m) for m in self.messages if m.role in ("system", "developer")]
        functions = [tool.function for tool in self.tools or []]
        try:
            check_choice(self.tool_choice or "auto", [function.name for function in functions])
        except ValueError as error:
            raise Problem(400, f"tool_choice {error}.", "invalid_value", "tool_choice") from None
        return base.model_copy(
            update={
                "instructions": "\n".join(system),
                "output_modalities": ["audio" if self.speaks else "text"],
                "max_output_tokens": self.max_completion_tokens or self.max_tokens or "inf",
                "tools": [
                    Tool(type="function", name=f.name, description=f.description or "", parameters=f.parameters or {})
                    for f in functions
                ],
                "tool_choice": self.tool_choice or "auto",
            }
        )

    def turns(self, said: dict[str, str]) -> list[Turn]:
        """What was said so far; `said` holds the words of earlier answers by their audio's id. Errors: `Problem`."""
        turns: list[Turn] = []
        for place, message in enumerate(self.messages):
            if message.role in ("system", "developer"):
                continue
            turn = _turn(message, f"messages[{place}]", said)
            if turn.role == "tool" and turns and turns[-1].role == "tool":  # calls of one answer
                turn = Turn("tool", turns.pop().segments + turn.segments)
            turns.append(turn)
        if not turns or turns[-1].role not in ("user", "tool"):
            raise Problem(400, "The last message must be the user's, or a tool's.", "invalid_value", "messages")
        return turns


def _turn(message: ChatMessage, where: str, said: dict[str, str]) -> Turn:
    if message.role == "tool":
        return Turn("tool", (Text(_words(message)),))
    role: Literal["user", "assistant"] = "user" if message.role == "user" else "assistant"
    for place, part in enumerate(message.content if isinstance(message.content, list) else []):
        if isinstance(part, AudioPart):
            field_name = f"{where}.content[{place}].input_audio.data"
            return Turn(role, (Speech(pcm=_sound(part.input_audio, field_name), text=_words(message) or None),))
    words = _words(message) or (said.get(message.audio.id, "") if message.audio else "")
    calls = [ToolCall(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    if role == "assistant" and calls:
        return Turn(role, (Text(words), *calls))
    if not words:
        raise Problem(400, f"{where}.content says nothing.", "invalid_value", f"{where}.content")
    return Turn(role, (Text(words),))


def _words(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content or [] if isinstance(part, TextPart))


def _sound(given: InputAudio, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(given.data, validate=True)
        return audio.from_pcm16(data) if given.format in ("pcm", "pcm16") else containers.decode(data, where)
    except UserError as error:
        raise Problem(400, str(error), "invalid_value", where) from None
    except ValueError:
        raise Problem(400, f"{where} is not valid base64.", "invalid_value", where) from None


@dataclass
class Completion:
    """An answer in the making, in chat's shape."""

    model: str
    speaks: bool
    usage: Usage = field(default_factory=lambda: Usage(Heard()))
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    audio_id: str = field(default_factory=lambda: new_id("audio"))
    created: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    pcm: list[np.ndarray] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str = "stop"

    def take(self, event: Event) -> dict[str, Any] | None:
        """An event of the answer's; returns the piece of a stream that it is, if it is one."""
        if isinstance(event, TextDelta):
            self.text += event.text
            self.usage.pieces += 1
            return (
                {"audio": {"id": self.audio_id, "transcript": event.text}} if self.speaks else {"content": event.text}
            )
        if isinstance(event, AudioDelta) and self.speaks:
            self.pcm.append(event.pcm)
            self.usage.samples += len(event.pcm)
            return {"audio": {"id": self.audio_id, "data": base64.b64encode(audio.to_pcm16(event.pcm)).decode()}}
        if isinstance(event, ToolCall):
            function = {"name": event.name, "arguments": event.arguments}
            self.calls.append({"id": new_id("call"), "type": "function", "function": function})
            self.reason = "tool_calls"
            return {"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1]}]}
        if isinstance(event, ReplyDone) and event.reason == "length":
            self.reason = "length"
        return None

    def whole(self, format: str) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        words = self.text.strip() or (None if self.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": None if self._spoken else words}
        message |= {"refusal": None, "annotations": []}
        if self._spoken:
            pcm = np.concatenate([np.zeros(0, np.float32), *self.pcm])
            data = base64.b64encode(containers.encode(pcm, format)).decode()
            ends = int(time.time()) + AUDIO_LIFE
            message["audio"] = {"id": self.audio_id, "data": data, "expires_at": ends, "transcript": self.text.strip()}
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "finish_reason": self.reason, "logprobs": None}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def pieces(self, events: AsyncIterator[Event], with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        yield self._chunk({"role": "assistant", "content": None if self.speaks else ""})
        async for event in events:
            if (delta := self.take(event)) is not None:
                yield self._chunk(delta)
        if self._spoken:
            yield self._chunk({"audio": {"id": self.audio_id, "expires_at": int(time.time()) + AUDIO_LIFE}})
        yield self._chunk({}, self.reason)
        if with_usage:
            yield {**self._frame("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    @property
    def _spoken(self) -> bool:
        """Whether there is sound to tell of: an answer that only calls has none."""
        return self.speaks and bool(self.pcm or not self.calls)

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        shown = self.usage.shown()
        return {
            "prompt_tokens": shown["input_tokens"],
            "completion_tokens": shown["output_tokens"],
            "total_tokens": shown["total_tokens"],
        }


def heard(turns: Sequence[Turn]) -> Heard:
    """What the model is given with these turns."""
    result = Heard()
    for turn in turns:
        for segment in turn.segments:
            if isinstance(segment, Speech) and segment.pcm is not None:
                result.samples += len(segment.pcm)
            words = segment.arguments if isinstance(segment, ToolCall) else segment.text
            result.pieces += len((words or "").split())
    return result
