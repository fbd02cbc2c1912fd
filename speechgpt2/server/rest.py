"""The REST interface: chat completions with audio, and the lists of models and voices."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from speechgpt2.server.api_errors import ApiError, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.chat_completions import ChatCompletion, ChatRequest, input_usage, until_stop
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.reply_api import (
    ReplyApi,
    Started,
    format_sse,
    sse_response,
    unless_disconnected,
)
from speechgpt2.server.response_format import response_schema
from speechgpt2.server.session_config import DEFAULT_VOICE, SessionConfig
from speechgpt2.types import PATCH_SECONDS, Event, Turn

MAX_TRANSCRIPTS = 1_000  # of spoken replies, to which a client may refer by the id of their audio


class RestApi(ReplyApi):
    """The routes of the REST interface."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self._transcripts: OrderedDict[str, str] = OrderedDict()  # of spoken replies, by the id of their audio
        self.router.add_api_route("/v1/models", self.list_models)
        self.router.add_api_route("/v1/models/{name:path}", self.get_model)
        self.router.add_api_route("/v1/voices", self.list_voices)
        self.router.add_api_route("/v1/personas", self.list_personas)
        self.router.add_api_route("/v1/chat/completions", self.create_chat_completion, methods=["POST"])

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        self.gateway.authenticate(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def get_model(self, request: Request, name: str) -> Response:
        """`GET /v1/models/{name}`."""
        self.gateway.authenticate(request)
        if name != self.gateway.config.model:
            raise ApiError(404, f"The model '{name}' does not exist here.", "model_not_found", "model")
        return JSONResponse(self._model())

    async def list_personas(self, request: Request) -> Response:
        """`GET /v1/personas`: the personas that a session may name. An extension."""
        self.gateway.authenticate(request)
        return JSONResponse({"object": "list", "data": self.gateway.personas.to_dicts()})

    async def list_voices(self, request: Request) -> Response:
        """`GET /v1/voices`: the voices that a client may name. An extension."""
        self.gateway.authenticate(request)
        return JSONResponse({"object": "list", "data": self.gateway.voices.to_dicts()})

    def _model(self) -> dict[str, Any]:
        return {"id": self.gateway.config.model, "object": "model", "created": 0, "owned_by": "speechgpt2"}

    # chat completions

    async def create_chat_completion(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        principal, chat, warnings = await self.read_json(request, ChatRequest)
        voice = chat.audio.voice if chat.audio is not None else DEFAULT_VOICE
        headers = warning_headers([*self.gateway.voices.warnings(voice, "audio.voice"), *warnings])
        audio_format = chat.audio_format() if chat.speaks else ""
        schema = response_schema(chat.response_format, "response_format", chat.speaks)
        turns = await asyncio.to_thread(chat.turns, self._transcripts, self.gateway.config.context * PATCH_SECONDS)
        config = self.with_voice(chat.session_config(self.gateway.default_session), voice, "audio.voice")
        completion = ChatCompletion(self.gateway.config.model, chat.speaks)
        completion.usage.input = input_usage(turns)

        async def respond() -> Response:
            events = await Started.start(self._answer(principal, config, turns, chat.stops, schema))
            if chat.stream:
                return sse_response(self._stream_completion(completion, events, chat.includes_usage), headers)
            response = await self._complete(completion, events, audio_format)
            response.headers.update(headers)
            return response

        return await unless_disconnected(request, respond())

    async def _answer(
        self,
        principal: Principal,
        config: SessionConfig,
        turns: Sequence[Turn],
        stops: Sequence[str],
        schema: dict[str, Any] | None,
    ) -> AsyncGenerator[Event, None]:
        with self.admitted(principal):
            async with aclosing(self.reply(config, turns, schema=schema)) as events:
                async for event in until_stop(events, stops):
                    yield event

    async def _complete(self, completion: ChatCompletion, events: Started[Event], audio_format: str) -> Response:
        async with aclosing(events):
            async for event in events:
                completion.add_event(event)
        self._keep_transcript(completion)
        return JSONResponse(completion.to_dict(audio_format))

    async def _stream_completion(
        self, completion: ChatCompletion, events: Started[Event], with_usage: bool
    ) -> AsyncGenerator[str, None]:
        async with aclosing(events):
            async for chunk in completion.stream(events, with_usage):
                yield format_sse(chunk)
        self._keep_transcript(completion)
        yield "data: [DONE]\n\n"

    def _keep_transcript(self, completion: ChatCompletion) -> None:
        if completion.speaks:
            self._transcripts[completion.audio_id] = completion.text.strip()
            while len(self._transcripts) > MAX_TRANSCRIPTS:
                self._transcripts.popitem(last=False)
