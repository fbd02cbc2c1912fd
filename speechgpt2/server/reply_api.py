"""The common part of the REST protocols: a slot for a request, replies on it, and HTTP responses that stream.

A request holds a slot like a Realtime session, from before its body is read until its reply is complete. If the client
disconnects, the generation stops and the slot is free.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from speechgpt2 import long_form
from speechgpt2.assistant.loop import CallLimit, refused, words_of
from speechgpt2.duplex.protocol import ReplyOptions, Session
from speechgpt2.errors import UserError
from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError, read_json, validate_request
from speechgpt2.server.auth import Principal
from speechgpt2.server.fillers import say_that_it_failed
from speechgpt2.server.gateway import WireProtocol
from speechgpt2.server.schema import ProtocolError, WireModel, ineffective
from speechgpt2.server.session_config import SessionConfig, other_model, unused_tools
from speechgpt2.server.settings import session_settings
from speechgpt2.style import NORMAL, parse_style
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Event, ReplyDone, TextDelta, ToolCall, Transcript, Turn

log = logging.getLogger("sg2.server")
T = TypeVar("T")
M = TypeVar("M", bound=WireModel)
MAX_TRANSCRIPT_TOKENS = 256  # of one window of a recording


class ReplyApi(WireProtocol):
    """Base class of REST protocols whose requests are answered by the model."""

    @contextmanager
    def admitted(self, principal: Principal) -> Iterator[None]:
        """Hold one of the server's slots while the block runs.

        Raises:
            ApiError: The server is full or drains, or the key has too many sessions.
        """
        try:
            with self.gateway.admission.admit(principal.key_id):
                yield
        except AdmissionError as error:
            raise self.gateway.rejection(error) from None

    async def read_json(self, request: Request, model: type[M]) -> tuple[Principal, M, list[str]]:
        """Identify the client and read its request, a JSON object.

        Returns:
            The client, the request, and warnings about fields without effect.

        Raises:
            ApiError: The client may not connect (401, 403), or the body is too large (413) or invalid (400).
        """
        principal = self.gateway.authenticate(request)
        body = await read_json(request, self.gateway.config.limits.request_bytes)
        parsed: M = validate_request(model, body)
        other = other_model(self.gateway.config.model, body.get("model"))
        return (
            principal,
            parsed,
            [*ineffective(parsed, body), *other, *unused_tools(self.gateway.engine, body, "tools")],
        )

    def with_voice(self, config: SessionConfig, wanted: str, param: str) -> SessionConfig:
        """Return settings with the voice that a client names in the field `param`.

        Raises:
            ApiError: There is no such voice.
        """
        try:
            return config.with_voice(self.gateway.voices.pick(wanted, param))
        except ProtocolError as error:
            raise ApiError(400, str(error), error.code, error.param) from None

    def limited(self, request: Request) -> Request:
        """Return the request with limits on the size of its body and on the time of the upload.

        Reading it raises `ApiError` 413 as soon as it exceeds `request_bytes`, and 408 after `upload_seconds`.
        """
        limits = self.gateway.config.limits
        end, size = time.monotonic() + limits.upload_seconds, 0

        async def receive() -> Any:
            nonlocal size
            try:
                message = await asyncio.wait_for(request.receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                text = f"The request did not arrive within {limits.upload_seconds:.0f} s."
                raise ApiError(408, text, "request_timeout", headers={"Connection": "close"}) from None
            size += len(message.get("body", b""))
            if size > limits.request_bytes:
                text = f"The request exceeds {limits.request_bytes} bytes."
                raise ApiError(413, text, "request_too_large", headers={"Connection": "close"})
            return message

        return Request(request.scope, receive)

    async def reply(
        self,
        config: SessionConfig,
        turns: Sequence[Turn],
        read_aloud: str | None = None,
        schema: dict[str, Any] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply, up to its `ReplyDone`. The request must be `admitted`.

        Calls of the server's own tools are made here, and their results answered: the client sees the last reply's
        calls only, and the text of all. A reply that calls the client's tools, too, ends there. A malformed call of any
        tool has one more attempt. If the tools leave the turn without an answer, it is a fixed sentence, except with a
        schema.

        Args:
            config: Settings of the session.
            turns: The conversation.
            read_aloud: A text to read aloud instead of a reply.
            schema: The JSON schema that the text follows.

        Raises:
            ApiError: The request is rejected or fails.
        """
        try:
            hosted = () if read_aloud is not None else self.gateway.tools.tools
            settings = replace(session_settings(config, paced=False, hosted=hosted), response_schema=schema)
            session = self.gateway.tracing.session(self.gateway.open_engine_session(settings))
            try:
                for turn in turns:
                    await asyncio.to_thread(session.add_turn, turn)  # encodes speech
                    while session.backlogged:
                        await asyncio.sleep(BACKLOG_POLL_INTERVAL)
                session.respond(ReplyOptions(text=read_aloud))
                said = next((words_of(turn) for turn in reversed(turns) if turn.role == "user"), "")
                async with aclosing(self._answers(session, config, said, schema is None)) as events:
                    async for event in events:
                        yield event
            finally:
                session.close()
        except AdmissionError as error:
            raise self.gateway.rejection(error) from None
        except UserError as error:
            raise ApiError(400, str(error), "invalid_value") from None

    async def transcript(self, pcm: np.ndarray, temperature: float = 0.0) -> str:
        """Return the model's transcript of `pcm [N]`, without waiting for its reply. The request must be `admitted`.

        Raises:
            ApiError: The model writes no transcripts.
        """
        changes = {
            "output_modalities": ["text"],
            "max_output_tokens": MAX_TRANSCRIPT_TOKENS,
            "temperature": temperature,
        }
        config = self.gateway.default_session.model_copy(update=changes)
        async with aclosing(self.reply(config, [Turn.user(speech=pcm)])) as events:
            async for event in events:
                if isinstance(event, Transcript):
                    return event.text.strip()
                if isinstance(event, ReplyDone) and event.reason == "length":
                    return ""
        raise ApiError(400, "This model does not write transcripts.", "unsupported_value", "model")

    async def read_aloud(
        self, config: SessionConfig, sentences: Sequence[str], faults: list[str] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of reading sentences aloud, one after the other. The request must be `admitted`.

        Speech that is too short or too long for its sentence is logged, and added to `faults`.

        Raises:
            ApiError: The request is rejected or fails.
        """
        output = config.audio.output
        rate = parse_style(output.style or NORMAL.name).faster(output.speed).rate
        for sentence in sentences:
            samples = 0
            async with aclosing(self.reply(config, (), long_form.with_final_mark(sentence))) as events:
                async for event in events:
                    if isinstance(event, AudioDelta):
                        samples += len(event.pcm)
                    yield event
            if fault := long_form.speech_fault(sentence, round(samples * rate)):
                log.warning(fault, extra={"fields": {"seconds": round(samples / SAMPLE_RATE, 1)}})
                if faults is not None:
                    faults.append(f"{fault}: {sentence}")

    async def _answers(
        self, session: Session, config: SessionConfig, said: str, any_text: bool
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a reply, and of those that follow from the results of the server's tools.

        Args:
            session: The session, which replies.
            config: Its settings.
            said: What the user has written.
            any_text: Whether the reply may be any text, and so the sentence that it failed.
        """
        limit, hosted = CallLimit(), {tool.name for tool in self.gateway.tools.tools}
        own = {tool.name for tool in config.functions}
        calls, words, before = list[ToolCall](), "", ""
        clients_turn = cut = False
        async for event in session.events():
            match event:
                case Error(message, refused=True):
                    raise ApiError(400, message, "invalid_value")
                case Error(message):
                    raise ApiError(500, message, "server_error", kind="server_error")
                case ToolCall() if event.malformed or (hosted and event.name not in own):
                    calls.append(event)
                    continue
                case ToolCall():
                    clients_turn = True
                case Transcript():
                    said = event.text
                case TextDelta():
                    if before and not words:
                        yield TextDelta(" ")  # between two replies
                    words += event.text
                case ReplyDone() if not clients_turn:
                    step = limit.after_reply(bool(calls), bool(words.strip()), event.reason)
                    cut = cut or event.reason == "length"
                    if step in ("run the calls", "refuse the calls"):
                        await self._run_calls(session, calls, limit)
                    elif step != "end" and any_text:
                        speak = config.speaks and step == "say that it failed"
                        say_that_it_failed(session, said, speak, self.gateway.engine.reads_aloud)
                    else:
                        yield ReplyDone("length") if cut else event
                        return
                    calls, words, before = [], "", before + words
                    continue
            yield event
            if isinstance(event, ReplyDone):
                return

    async def _run_calls(self, session: Session, calls: Sequence[ToolCall], limit: CallLimit) -> None:
        """Run calls of the server's tools unless they are refused, and have the session answer their results."""
        tools = self.gateway.tools
        results = refused(calls) if limit.refused else await tools.toolbox().run_async(calls)
        limit.count(results)
        session.add_turn(tools.turn([result.text for result in results]))
        session.respond(ReplyOptions(require_tool=False) if limit.refused else None)


BACKLOG_POLL_INTERVAL = 0.01  # seconds


class Started(Generic[T]):
    """An async generator that has already yielded its first item, which is not lost.

    If the generator fails before its first item, the request is answered with an HTTP error, which is impossible after
    the start of a streaming response. The generator holds the request's slot; `aclose` ends it.
    """

    def __init__(self, items: AsyncGenerator[T, None], first: list[T]):
        self._items, self._first = items, first

    @classmethod
    async def start(cls, items: AsyncGenerator[T, None]) -> Started[T]:
        """Wait for the first item, if there is one.

        Raises:
            ApiError: The request is rejected or fails.
        """
        return cls(items, [item] if (item := await anext(items, None)) is not None else [])

    def __aiter__(self) -> Started[T]:
        return self

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._items)

    async def aclose(self) -> None:
        """Stop the reply and free its slot."""
        await self._items.aclose()


async def unless_disconnected(request: Request, response: Awaitable[Response]) -> Response:
    """Wait for a response; cancel it when the client disconnects."""
    working = asyncio.ensure_future(response)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)
    finally:
        for task in (working, disconnected):
            task.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def format_sse(event: dict[str, Any], name: str | None = None) -> str:
    """Format a server-sent event."""
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def sse_response(events: AsyncGenerator[str, None], headers: dict[str, str] | None = None) -> StreamingResponse:
    """Return a response of server-sent events. A failure after its start is an event, too: the status has been sent."""

    async def guarded() -> AsyncIterator[str]:
        async with aclosing(events):
            try:
                async for event in events:
                    yield event
            except ApiError as error:
                yield format_sse({"error": error.body})

    return StreamingResponse(guarded(), media_type="text/event-stream", headers=headers)
