"""The REST interface: chat completions with audio, speech synthesis, transcription, and the list of models.

A request holds a slot like a Realtime session, for as long as its reply is generated. If the client disconnects, the
generation stops and the slot is free.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, Literal

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field
from starlette.datastructures import UploadFile

from speechgpt2 import audio
from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.errors import UserError
from speechgpt2.server import audio_files
from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError, read_json
from speechgpt2.server.auth import Principal
from speechgpt2.server.chat_completions import ChatCompletion, ChatRequest, input_usage
from speechgpt2.server.gateway import Gateway, WireProtocol
from speechgpt2.server.response import PATCH
from speechgpt2.server.schema import ProtocolError, WireModel, validate
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.settings import session_settings
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Event, ReplyDone, Transcript, Turn

MAX_TRANSCRIPTS = 1_000  # of spoken replies, to which a client may refer by the id of their audio
MAX_TRANSCRIPT_TOKENS = 256


class SpeechRequest(WireModel):
    """A request for speech synthesis. `voice` and `speed` are accepted and have no effect."""

    model: str
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, Any] = "default"
    instructions: str = ""
    response_format: str = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"


class TranscriptionRequest(WireModel):
    """A request for a transcription, beside its file."""

    model: str
    language: str | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    stream: Literal["true", "false"] = "false"


class RestApi(WireProtocol):
    """The routes of the REST interface."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self._transcripts: OrderedDict[str, str] = OrderedDict()  # of spoken replies, by the id of their audio
        self.router.add_api_route("/v1/models", self.list_models)
        self.router.add_api_route("/v1/models/{name:path}", self.get_model)
        self.router.add_api_route("/v1/chat/completions", self.create_chat_completion, methods=["POST"])
        self.router.add_api_route("/v1/audio/speech", self.create_speech, methods=["POST"])
        self.router.add_api_route("/v1/audio/transcriptions", self.create_transcription, methods=["POST"])

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

    def _model(self) -> dict[str, Any]:
        return {"id": self.gateway.config.model, "object": "model", "created": 0, "owned_by": "speechgpt2"}

    # chat completions

    async def create_chat_completion(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        principal = self.gateway.authenticate(request)
        limit = self.gateway.config.limits.request_bytes
        chat: ChatRequest = validate_request(ChatRequest, await read_json(request, limit))
        audio_format = chat.audio_format() if chat.speaks else ""
        turns = chat.turns(self._transcripts)
        config = chat.session_config(self.gateway.default_session)
        events = await ReplyEvents.start(self.generate(principal, config, turns))
        completion = ChatCompletion(self.gateway.config.model, chat.speaks)
        completion.usage.input = input_usage(turns)
        if chat.stream:
            chunks = self._stream_completion(completion, events, chat.includes_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        return await unless_disconnected(request, self._complete(completion, events, audio_format))

    async def _complete(self, completion: ChatCompletion, events: ReplyEvents, audio_format: str) -> Response:
        async with aclosing(events):
            async for event in events:
                completion.add_event(event)
        self._keep_transcript(completion)
        return JSONResponse(completion.to_dict(audio_format))

    async def _stream_completion(
        self, completion: ChatCompletion, events: ReplyEvents, with_usage: bool
    ) -> AsyncIterator[str]:
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

    # audio

    async def create_speech(self, request: Request) -> Response:
        """`POST /v1/audio/speech`: read a text aloud."""
        principal = self.gateway.authenticate(request)
        limit = self.gateway.config.limits.request_bytes
        speech: SpeechRequest = validate_request(SpeechRequest, await read_json(request, limit))
        try:
            media_type = audio_files.media_type(speech.response_format)
        except UserError as error:
            raise ApiError(400, f"response_{error}.", "invalid_value", "response_format") from None
        config = self.gateway.default_session.model_copy(update={"output_modalities": ["audio"]})
        events = await ReplyEvents.start(self.generate(principal, config, (), speech.input))
        if speech.stream_format == "sse":
            return StreamingResponse(_stream_speech_events(events), media_type="text/event-stream")
        if speech.response_format in audio_files.STREAMABLE:
            header = audio_files.wav_header() if speech.response_format == "wav" else b""
            return StreamingResponse(_stream_speech(events, header), media_type=media_type)
        return await unless_disconnected(request, _speech_file(events, speech.response_format, media_type))

    async def create_transcription(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`: write a recording down."""
        principal = self.gateway.authenticate(request)
        options, pcm = await self._read_transcription_form(request)
        changes = {"output_modalities": ["text"], "max_output_tokens": MAX_TRANSCRIPT_TOKENS}
        config = self.gateway.default_session.model_copy(update=changes)
        events = await ReplyEvents.start(self.generate(principal, config, [Turn.user(speech=pcm)]))
        if options.stream == "true":
            return StreamingResponse(_stream_transcript(events), media_type="text/event-stream")
        text = await read_transcript(events)
        if options.response_format == "text":
            return PlainTextResponse(text + "\n")
        duration = len(pcm) / SAMPLE_RATE
        body: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": duration}}
        if options.response_format == "verbose_json":
            body |= {"language": options.language or "", "duration": duration, "segments": [], "words": []}
        return JSONResponse(body)

    async def _read_transcription_form(self, request: Request) -> tuple[TranscriptionRequest, np.ndarray]:
        """Read options and recording, `[N]` at 24 kHz.

        Raises:
            ApiError: The form is too large or invalid.
        """
        length, limit = request.headers.get("content-length"), self.gateway.config.limits.request_bytes
        if length is None or int(length) > limit:
            raise ApiError(413, f"A form needs a Content-Length of at most {limit} bytes.", "request_too_large")
        async with request.form(max_files=1, max_part_size=limit) as form:
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
            options: TranscriptionRequest = validate_request(TranscriptionRequest, fields)
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "file is missing.", "missing_required_parameter", "file")
            try:
                return options, audio_files.decode_file(await file.read(), file.filename or "file")
            except UserError as error:
                raise ApiError(400, str(error), "invalid_value", "file") from None

    async def generate(
        self, principal: Principal, config: SessionConfig, turns: Sequence[Turn], read_aloud: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply, up to its `ReplyDone`.

        Args:
            principal: The client.
            config: Settings of the session.
            turns: The conversation.
            read_aloud: A text to read aloud instead of a reply.

        Raises:
            ApiError: The request is rejected or fails.
        """
        try:
            with self.gateway.admission.admit(principal.key_id):
                session = self.gateway.open_engine_session(session_settings(config, paced=False))
                try:
                    for turn in turns:
                        await asyncio.to_thread(session.add_turn, turn)  # encodes speech
                    session.respond(ReplyOptions(text=read_aloud))
                    async for event in session.events():
                        if isinstance(event, Error):
                            raise ApiError(500, event.message, "server_error", kind="server_error")
                        yield event
                        if isinstance(event, ReplyDone):
                            return
                finally:
                    session.close()
        except AdmissionError as error:
            raise self.gateway.rejection(error) from None
        except UserError as error:
            raise ApiError(400, str(error), "invalid_value") from None


class ReplyEvents:
    """The events of a reply, of which the first has come already.

    A request that fails at once can so be answered with an HTTP error, before a streaming response has started.
    """

    def __init__(self, events: AsyncGenerator[Event, None], first: Event):
        self._events, self._first = events, [first]

    @classmethod
    async def start(cls, events: AsyncGenerator[Event, None]) -> ReplyEvents:
        """Wait for the first event.

        Raises:
            ApiError: The request is rejected or fails.
        """
        return cls(events, await anext(events))

    def __aiter__(self) -> ReplyEvents:
        return self

    async def __anext__(self) -> Event:
        return self._first.pop() if self._first else await anext(self._events)

    async def aclose(self) -> None:
        """Stop the reply and free its slot."""
        await self._events.aclose()


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


def validate_request(model: type[Any], body: Any) -> Any:
    """Validate a request's body against a pydantic model.

    Raises:
        ApiError: A field is invalid; names it.
    """
    try:
        return validate(model, body)
    except ProtocolError as error:
        raise ApiError(400, str(error), error.code, error.param) from None


async def read_transcript(events: ReplyEvents) -> str:
    """Return the model's transcript of the user's turn, without waiting for its reply.

    Raises:
        ApiError: The model writes no transcripts.
    """
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Transcript):
                return event.text
    raise ApiError(400, "This model does not write transcripts.", "unsupported_value", "model")


async def _speech_file(events: ReplyEvents, format: str, media_type: str) -> Response:
    async with aclosing(events):
        pcm = [event.pcm async for event in events if isinstance(event, AudioDelta)]
    data = audio_files.encode_file(np.concatenate([np.zeros(0), *pcm]), format)
    return Response(data, media_type=media_type)


async def _stream_speech(events: ReplyEvents, header: bytes) -> AsyncIterator[bytes]:
    yield header
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                yield audio.to_pcm16(event.pcm)


async def _stream_speech_events(events: ReplyEvents) -> AsyncIterator[str]:
    samples = 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                samples += len(event.pcm)
                data = base64.b64encode(audio.to_pcm16(event.pcm)).decode()
                yield format_sse({"type": "speech.audio.delta", "audio": data})
    patches = samples // PATCH
    usage = {"input_tokens": 0, "output_tokens": patches, "total_tokens": patches}
    yield format_sse({"type": "speech.audio.done", "usage": usage})


async def _stream_transcript(events: ReplyEvents) -> AsyncIterator[str]:
    text = await read_transcript(events)
    for index, word in enumerate(text.split(" ")):
        yield format_sse({"type": "transcript.text.delta", "delta": word if not index else f" {word}"})
    yield format_sse({"type": "transcript.text.done", "text": text})


def format_sse(event: dict[str, Any]) -> str:
    """Format a server-sent event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
