"""Chat completions: the request as turns of a conversation, and the reply in OpenAI's form, complete or streamed."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.server import audio_files
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.items import new_id
from speechgpt2.server.reply_request import ReplyRequest
from speechgpt2.server.response import InputUsage, Usage
from speechgpt2.server.schema import NoEffect, WireModel
from speechgpt2.server.session_config import (
    DEFAULT_VOICE,
    AnySpeed,
    FunctionTool,
    MaxTokens,
    SessionConfig,
    StyleNames,
    ToolChoice,
    VoiceName,
)
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Event, ReplyDone, Speech, Text, TextDelta, ToolCall, Turn

MAX_MESSAGES = 1024  # of a request; the context cannot hold more
StopText = Annotated[str, Field(min_length=1)]
AUDIO_TTL = 3600  # seconds for which a client may refer to a reply's audio by its id

# the request


class InputAudio(WireModel):
    """Base64 audio."""

    data: str
    format: str = "wav"


class TextPart(WireModel):
    """A written part of a message."""

    type: Literal["text"]
    text: str


class AudioPart(WireModel):
    """A spoken part of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioReference(WireModel):
    """The audio of an earlier reply, by its id."""

    id: str


class ChatFunction(WireModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ChatTool(WireModel):
    """A tool of chat completions."""

    type: Literal["function"]
    function: ChatFunction


class CalledFunction(WireModel):
    """Name and arguments of a tool call."""

    name: str
    arguments: str


class ChatToolCall(WireModel):
    """A tool call of an earlier reply. Results follow in the order of the calls, whatever the ids."""

    type: Literal["function"] = "function"
    id: str | None = None
    function: CalledFunction


class ChatMessage(WireModel):
    """A message of the conversation; `audio` refers to an earlier reply of this server."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] | None = None
    audio: AudioReference | None = None
    tool_calls: list[ChatToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None

    @property
    def text(self) -> str:
        """The message's written parts."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [] if isinstance(part, TextPart))

    def to_turn(self, path: str, transcripts: Mapping[str, str], max_seconds: float) -> Turn:
        """Convert the message to a turn.

        Args:
            path: The message's path in the request, for error messages.
            transcripts: Transcripts of earlier replies by the id of their audio.
            max_seconds: The longest audio.

        Raises:
            ApiError: The message is empty, or its audio is invalid.
        """
        if self.role == "tool":
            return Turn("tool", (Text(self.text),))
        role: Literal["user", "assistant"] = "user" if self.role == "user" else "assistant"
        parts = self.content if isinstance(self.content, list) else []
        if sum(isinstance(part, AudioPart) for part in parts) > 1:
            text = f"{path}.content holds several recordings: give each a message of its own."
            raise ApiError(400, text, "unsupported_value", f"{path}.content")
        for index, part in enumerate(parts):
            if isinstance(part, AudioPart):
                pcm = _decode_audio(part.input_audio, f"{path}.content[{index}].input_audio.data", max_seconds)
                return Turn(role, (Speech(pcm=pcm, text=self.text or None),))
        text = self.text or (transcripts.get(self.audio.id, "") if self.audio else "")
        calls = [ToolCall(call.function.name, call.function.arguments) for call in self.tool_calls or []]
        if role == "assistant" and calls:
            return Turn(role, (Text(text), *calls))
        if not text:
            raise ApiError(400, f"{path}.content is empty.", "invalid_value", f"{path}.content")
        return Turn(role, (Text(text),))


class ChatAudio(WireModel):
    """The audio settings of the reply; `speed` and `style` are extensions."""

    voice: VoiceName = DEFAULT_VOICE
    format: str = "wav"
    speed: AnySpeed | None = None
    style: StyleNames | None = None


class StreamOptions(WireModel):
    """Options of a streamed reply."""

    include_usage: bool = False


Zero = Annotated[float, Field(ge=0, le=0)]


class ChatRequest(ReplyRequest):
    """A request for a chat completion. Some fields accept only the value that has no effect."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: ChatAudio | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    tools: list[ChatTool] | None = None
    tool_choice: ToolChoice | None = None
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[StopText], Field(max_length=4)] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    parallel_tool_calls: Annotated[bool, NoEffect("the model decides how many tools it calls")] = True

    @property
    def stops(self) -> list[str]:
        """Texts before which the reply ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def speaks(self) -> bool:
        """Whether the reply is spoken."""
        return "audio" in (self.modalities or [])

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed reply ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def audio_format(self) -> str:
        """Return the format of the reply's audio.

        Raises:
            ApiError: The format is not supported.
        """
        default = "pcm16" if self.stream else "wav"
        format = default if self.audio is None else self.audio.format
        if self.stream and format not in ("pcm16", "pcm"):
            raise ApiError(400, "audio.format must be 'pcm16' when streaming.", "invalid_value", "audio.format")
        try:
            audio_files.media_type(format)
        except UserError as error:
            raise ApiError(400, f"audio.{error}.", "invalid_value", "audio.format") from None
        return format

    def session_config(self, default: SessionConfig) -> SessionConfig:
        """Return the settings of a session that makes the reply.

        Raises:
            ApiError: `tool_choice` names an unknown tool, or a spoken reply has `stop`.
        """
        if self.speaks and self.stops:
            raise ApiError(400, "stop is supported for written replies only.", "unsupported_value", "stop")
        system = [message.text for message in self.messages if message.role in ("system", "developer")]
        functions = [tool.function for tool in self.tools or []]
        tools = [
            FunctionTool(type="function", name=f.name, description=f.description or "", parameters=f.parameters or {})
            for f in functions
        ]
        if self.audio is not None:
            default = default.with_delivery(self.audio.speed, self.audio.style)
        return default.model_copy(
            update={
                "instructions": "\n".join(system) or default.instructions,
                "output_modalities": ["audio" if self.speaks else "text"],
                "max_output_tokens": self.max_completion_tokens or self.max_tokens or "inf",
                **self.reply_settings(tools, self.tool_choice or "auto"),
            }
        )

    def turns(self, transcripts: Mapping[str, str], max_seconds: float) -> list[Turn]:
        """Convert the messages to turns.

        Args:
            transcripts: Transcripts of earlier replies by the id of their audio.
            max_seconds: The longest audio of a message.

        Raises:
            ApiError: A message is invalid.
        """
        turns: list[Turn] = []
        for index, message in enumerate(self.messages):
            if message.role in ("system", "developer"):
                continue
            turn = message.to_turn(f"messages[{index}]", transcripts, max_seconds)
            if turn.role == "tool" and turns and turns[-1].role == "tool":  # results of one reply's calls
                turn = Turn("tool", turns.pop().segments + turn.segments)
            turns.append(turn)
        if not turns or turns[-1].role not in ("user", "tool"):
            raise ApiError(400, "The last message must be of role 'user' or 'tool'.", "invalid_value", "messages")
        return turns


def _decode_audio(given: InputAudio, path: str, max_seconds: float) -> np.ndarray:
    """Return the samples of a message's audio, without its silent end: a live turn has none, either."""
    try:
        data = base64.b64decode(given.data, validate=True)
        if given.format not in ("pcm", "pcm16"):
            return audio.cut_silent_end(audio_files.decode_file(data, path, max_seconds))
        pcm = audio.from_pcm16(data)
        if len(pcm) > max_seconds * SAMPLE_RATE:
            raise UserError(f"{path}: is longer than {max_seconds:g} s, the most that is read here")
        return audio.cut_silent_end(pcm)
    except UserError as error:
        raise ApiError(400, str(error), "invalid_value", path) from None
    except ValueError:
        raise ApiError(400, f"{path} is not valid base64.", "invalid_value", path) from None


# the reply


@dataclass
class ChatCompletion:
    """A reply in progress.

    Attributes:
        model: The model's name.
        speaks: Whether the reply is spoken.
        usage: Token counts.
    """

    model: str
    speaks: bool
    usage: Usage = field(default_factory=lambda: Usage(InputUsage()))
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    audio_id: str = field(default_factory=lambda: new_id("audio"))
    created: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    pcm: list[np.ndarray] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"

    def add_event(self, event: Event) -> dict[str, Any] | None:
        """Add an event; returns the `delta` of a streamed reply, if the event is one."""
        if isinstance(event, TextDelta):
            self.text += event.text
            self.usage.text_tokens += 1
            if self.speaks:
                return {"audio": {"id": self.audio_id, "transcript": event.text}}
            return {"content": event.text}
        if isinstance(event, AudioDelta) and self.speaks:
            self.pcm.append(event.pcm)
            self.usage.audio_samples += len(event.pcm)
            return {"audio": {"id": self.audio_id, "data": base64.b64encode(audio.to_pcm16(event.pcm)).decode()}}
        if isinstance(event, ToolCall):
            function = {"name": event.name, "arguments": event.arguments}
            self.calls.append({"id": new_id("call"), "type": "function", "function": function})
            self.finish_reason = "tool_calls"
            return {"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1]}]}
        if isinstance(event, ReplyDone) and event.reason == "length":
            self.finish_reason = "length"
        return None

    def to_dict(self, audio_format: str) -> dict[str, Any]:
        """Format the complete reply."""
        text = self.text.strip() or (None if self.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": None if self._has_audio else text}
        message |= {"refusal": None, "annotations": []}
        if self._has_audio:
            pcm = np.concatenate([np.zeros(0, np.float32), *self.pcm])
            data = base64.b64encode(audio_files.encode_file(pcm, audio_format)).decode()
            message["audio"] = {
                "id": self.audio_id,
                "data": data,
                "expires_at": int(time.time()) + AUDIO_TTL,
                "transcript": self.text.strip(),
            }
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}
        return {**self._header("chat.completion"), "choices": [choice], "usage": self._usage_to_dict()}

    async def stream(self, events: AsyncIterator[Event], with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed reply."""
        yield self._chunk({"role": "assistant", "content": None if self.speaks else ""})
        async for event in events:
            if (delta := self.add_event(event)) is not None:
                yield self._chunk(delta)
        if self._has_audio:
            yield self._chunk({"audio": {"id": self.audio_id, "expires_at": int(time.time()) + AUDIO_TTL}})
        yield self._chunk({}, self.finish_reason)
        if with_usage:
            yield {**self._header("chat.completion.chunk"), "choices": [], "usage": self._usage_to_dict()}

    @property
    def _has_audio(self) -> bool:
        """Whether the reply has audio; one that only calls tools has none."""
        return self.speaks and bool(self.pcm or not self.calls)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._header("chat.completion.chunk"), "choices": [choice]}

    def _header(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage_to_dict(self) -> dict[str, Any]:
        usage = self.usage.to_dict()
        return {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["total_tokens"],
        }


async def until_stop(events: AsyncIterator[Event], stops: Sequence[str]) -> AsyncGenerator[Event, None]:
    """Yield a written reply's events, and end the reply before the first text of `stops`.

    Text is held back as long as it may be the beginning of a stop text.
    """
    held, longest = "", max(map(len, stops), default=0)
    async for event in events:
        if not isinstance(event, TextDelta) or not stops:
            if held:
                yield TextDelta(held)
                held = ""
            yield event
            continue
        held += event.text
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        ready = min(found) if found else max(0, len(held) - longest + 1)
        if ready:
            yield TextDelta(held[:ready])
        if found:
            yield ReplyDone("stop")
            return
        held = held[ready:]


def input_usage(turns: Sequence[Turn]) -> InputUsage:
    """Count the input of `turns`."""
    result = InputUsage()
    for turn in turns:
        for segment in turn.segments:
            if isinstance(segment, Speech) and segment.pcm is not None:
                result.audio_samples += len(segment.pcm)
            text = segment.arguments if isinstance(segment, ToolCall) else segment.text
            result.text_tokens += len((text or "").split())
    return result
