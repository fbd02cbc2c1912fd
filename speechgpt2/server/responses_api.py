"""A part of OpenAI's Responses API: written replies, complete or streamed, with tools.

`POST /v1/responses` takes the whole conversation in `input`, because this server stores none.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from speechgpt2.server.api_errors import ApiError, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.chat_completions import MAX_MESSAGES, input_usage
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.items import new_id
from speechgpt2.server.reply_api import ReplyApi, Started, format_sse, sse_response, unless_disconnected
from speechgpt2.server.reply_request import ReplyRequest
from speechgpt2.server.response import Usage
from speechgpt2.server.response_format import response_schema
from speechgpt2.server.schema import NoEffect, WireModel
from speechgpt2.server.session_config import FunctionTool, MaxTokens, SessionConfig, ToolChoice
from speechgpt2.types import Event, ReplyDone, Text, TextDelta, ToolCall, Turn

STATELESS = "this server stores no responses"


class TextContent(WireModel):
    """A written part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Message(WireModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextContent]

    @property
    def text(self) -> str:
        """All its text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class FunctionCall(WireModel):
    """A tool call of an earlier response. Results follow in the order of the calls."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(WireModel):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


class TextConfig(WireModel):
    """Settings of the text."""

    format: dict[str, Any] | None = None


class ResponsesRequest(ReplyRequest):
    """A request for a response."""

    input: (
        str | Annotated[list[Message | FunctionCall | FunctionCallOutput], Field(min_length=1, max_length=MAX_MESSAGES)]
    )
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    text: TextConfig | None = None
    previous_response_id: None = None  # the error names it
    metadata: dict[str, str] | None = None
    store: Annotated[bool | None, NoEffect(STATELESS)] = False
    parallel_tool_calls: Annotated[bool | None, NoEffect("the model decides how many tools it calls")] = True

    @property
    def format(self) -> dict[str, Any] | None:
        """The form of the text."""
        return None if self.text is None else self.text.format

    def session_config(self, default: SessionConfig) -> SessionConfig:
        """Return the settings of a session that makes the response.

        Raises:
            ApiError: `tool_choice` names an unknown tool.
        """
        items = [] if isinstance(self.input, str) else self.input
        system = [item.text for item in items if isinstance(item, Message) and item.role in ("system", "developer")]
        update: dict[str, Any] = {
            "instructions": "\n".join(filter(None, [self.instructions, *system])) or default.instructions,
            "output_modalities": ["text"],
            "max_output_tokens": self.max_output_tokens or "inf",
            **self.reply_settings(self.tools, self.tool_choice),
        }
        return default.model_copy(update=update)

    def turns(self) -> list[Turn]:
        """Convert the input to turns.

        Raises:
            ApiError: The last item is not the user's or a tool's.
        """
        if isinstance(self.input, str):
            return [Turn.user(self.input)]
        turns: list[Turn] = []
        for item in self.input:
            if isinstance(item, FunctionCall):
                turns.append(Turn("assistant", (ToolCall(item.name, item.arguments),)))
            elif isinstance(item, FunctionCallOutput):
                turns.append(Turn("tool", (Text(item.output),)))
            elif item.role in ("user", "assistant"):
                turns.append(Turn(item.role, (Text(item.text),)))  # type: ignore[arg-type]
        for index in range(len(turns) - 1, 0, -1):  # calls and results of one response are one turn each
            first, second = turns[index - 1 : index + 1]
            calls = second.role == "assistant" and isinstance(second.segments[0], ToolCall)
            if first.role == second.role and (second.role == "tool" or calls):
                turns[index - 1 : index + 1] = [Turn(first.role, first.segments + second.segments)]
        if not turns or turns[-1].role not in ("user", "tool"):
            raise ApiError(
                400, "The last item of input must be the user's or a tool's output.", "invalid_value", "input"
            )
        return turns


class ResponsesApi(ReplyApi):
    """The route of the Responses API."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/responses", self.create, methods=["POST"])

    async def create(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        principal, wanted, warnings = await self.read_json(request, ResponsesRequest)
        headers = warning_headers(warnings)
        config, turns = wanted.session_config(self.gateway.default_session), wanted.turns()
        schema = response_schema(wanted.format, "text.format")
        response = WrittenResponse(self.gateway.config.model, wanted)
        response.usage.input = input_usage(turns)

        async def respond() -> Response:
            events = await Started.start(self._answer(principal, config, turns, schema))
            if wanted.stream:
                return sse_response(_formatted(response.stream(events)), headers)
            async with aclosing(response.stream(events)) as stream:
                async for _ in stream:
                    pass  # collects the response
            return JSONResponse(response.to_dict(), headers=headers)

        return await unless_disconnected(request, respond())

    async def _answer(
        self, principal: Principal, config: SessionConfig, turns: list[Turn], schema: dict[str, Any] | None
    ) -> AsyncGenerator[Event, None]:
        with self.admitted(principal):
            async with aclosing(self.reply(config, turns, schema=schema)) as events:
                async for event in events:
                    yield event


async def _formatted(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        async for event in events:
            yield format_sse(event, event["type"])


class WrittenResponse:
    """A response in progress.

    Args:
        model: The model's name.
        request: The client's request.
    """

    def __init__(self, model: str, request: ResponsesRequest):
        self.model, self.request = model, request
        self.id, self.created = new_id("resp"), int(time.time())
        self.status, self.output, self.usage = "in_progress", [], Usage()  # type: str, list[dict[str, Any]], Usage
        self._sent = 0

    def to_dict(self) -> dict[str, Any]:
        """Format the response for the wire."""
        request = self.request
        usage = {name: value for name, value in self.usage.to_dict().items() if name.endswith("_tokens")}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": self.status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": self.output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": request.format or {"type": "text"}},
            "tool_choice": request.tool_choice,
            "tools": [tool.model_dump() for tool in request.tools],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if self.status == "in_progress" else {**usage, **details},
        }

    async def stream(self, events: Started[Event]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of the protocol for those of a reply, and collect the response."""
        yield self._event("response.created", response=self.to_dict())
        yield self._event("response.in_progress", response=self.to_dict())
        message: dict[str, Any] | None = None
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    if message is None:
                        message = self._message()
                        self.output.append(message)
                        yield self._item_event("added", message)
                        yield self._part_event("response.content_part.added", message, part=_part(""))
                    message["content"][0]["text"] += event.text
                    self.usage.text_tokens += 1
                    yield self._part_event("response.output_text.delta", message, delta=event.text, logprobs=[])
                elif isinstance(event, ToolCall):
                    call = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call"), "name": event.name}
                    call |= {"arguments": event.arguments, "status": "completed"}
                    self.output.append(call)
                    yield self._item_event("added", {**call, "arguments": "", "status": "in_progress"})
                    place = {"item_id": call["id"], "output_index": len(self.output) - 1}
                    kind = "response.function_call_arguments"
                    yield self._event(f"{kind}.delta", **place, delta=event.arguments)
                    yield self._event(f"{kind}.done", **place, name=event.name, arguments=event.arguments)
                    yield self._item_event("done", call)
                elif isinstance(event, ReplyDone):
                    self.status = "incomplete" if event.reason == "length" else "completed"
        if message is not None:
            message["status"], part = self.status, message["content"][0]
            yield self._part_event("response.output_text.done", message, text=part["text"], logprobs=[])
            yield self._part_event("response.content_part.done", message, part=part)
            yield self._item_event("done", message)
        yield self._event(f"response.{self.status}", response=self.to_dict())

    def _message(self) -> dict[str, Any]:
        status = "in_progress"
        return {"id": new_id("msg"), "type": "message", "role": "assistant", "status": status, "content": [_part("")]}

    def _event(self, type: str, **fields: Any) -> dict[str, Any]:
        self._sent += 1
        return {"type": type, "sequence_number": self._sent - 1, **fields}

    def _item_event(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        index = next(n for n, other in enumerate(self.output) if other["id"] == item["id"])
        shown = {**item, "content": []} if kind == "added" and "content" in item else dict(item)
        return self._event(f"response.output_item.{kind}", output_index=index, item=shown)

    def _part_event(self, type: str, item: dict[str, Any], **fields: Any) -> dict[str, Any]:
        place = {"item_id": item["id"], "output_index": self.output.index(item), "content_index": 0}
        return self._event(type, **place, **fields)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
