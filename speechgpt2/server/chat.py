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
from speechgpt2.server.wire import MaxTokens, Message, Session, ToolChoice
from speechgpt2.types import AudioDelta, Event, Speech, Text, TextDelta, ToolCall, Turn, TurnDone

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


class ChatMessage(Message):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] | None = None
    audio: NamedAudio | None = None  # an earlier answer of ours


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
    tools: list[dict[str, Any]] | None = None
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
        """A session's settings for this answer."""
        system = [_words(m) for m in self.messages if m.role in ("system", "developer")]
        return base.model_copy(
            update={
                "instructions": "\n".join(system),
                "output_modalities": ["audio" if self.speaks else "text"],
                "max_output_tokens": self.max_completion_tokens or self.max_tokens or "inf",
            }
        )

    def turns(self, said: dict[str, str]) -> list[Turn]:
        """What was said so far; `said` holds the words of earlier answers by their audio's id. Errors: `Problem`."""
        turns = []
        for place, message in enumerate(self.messages):
            if message.role in ("system", "developer"):
                continue
            if message.role == "tool":
                raise Problem(
                    400, "This model takes no results of tools.", "unsupported_value", f"messages[{place}].role"
                )
            turns.append(_turn(message, f"messages[{place}]", said))
        if not turns or turns[-1].role != "user":
            raise Problem(400, "The last message must be the user's.", "invalid_value", "messages")
        return turns


def _turn(message: ChatMessage, where: str, said: dict[str, str]) -> Turn:
    role: Literal["user", "assistant"] = "user" if message.role == "user" else "assistant"
    for place, part in enumerate(message.content if isinstance(message.content, list) else []):
        if isinstance(part, AudioPart):
            field_name = f"{where}.content[{place}].input_audio.data"
            return Turn(role, (Speech(pcm=_sound(part.input_audio, field_name), text=_words(message) or None),))
    words = _words(message) or (said.get(message.audio.id, "") if message.audio else "")
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
        if isinstance(event, TurnDone) and event.reason == "length":
            self.reason = "length"
        return None

    def whole(self, format: str) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message: dict[str, Any] = {"role": "assistant", "content": None if self.speaks else self.text.strip()}
        message |= {"refusal": None, "annotations": []}
        if self.speaks:
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
        if self.speaks:
            yield self._chunk({"audio": {"id": self.audio_id, "expires_at": int(time.time()) + AUDIO_LIFE}})
        yield self._chunk({}, self.reason)
        if with_usage:
            yield {**self._frame("chat.completion.chunk"), "choices": [], "usage": self._usage()}

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
            result.pieces += len((segment.text or "").split())
    return result
