"""Plain requests: chat completions with sound, reading aloud, transcription, and the list of models.

Each takes a place like a realtime session does, for as long as its answer is being made; so what is made for a client
that has left stops, and gives its place back.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field
from starlette.datastructures import UploadFile

from speechgpt2 import audio
from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.errors import UserError
from speechgpt2.server import chat, containers, settings
from speechgpt2.server.auth import Caller
from speechgpt2.server.limits import Refused
from speechgpt2.server.problems import Problem, read_json
from speechgpt2.server.wire import Message, Session, WireError, checked
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Event, ReplyDone, Transcript, Turn

if TYPE_CHECKING:
    from speechgpt2.server.app import App

REMEMBERED = 1_000  # answers whose words a client may still name by their audio's id


class SpeechRequest(Message):
    model: str
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, Any] = "default"
    instructions: str = ""
    response_format: str = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)  # accepted; the model speaks as it speaks
    stream_format: Literal["audio", "sse"] = "audio"


class TranscriptionRequest(Message):
    model: str
    language: str | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    stream: Literal["true", "false"] = "false"


class Rest:
    """The routes of one application."""

    def __init__(self, app: App):
        self.app = app
        self.said: OrderedDict[str, str] = OrderedDict()  # by the audio's id
        self.router = APIRouter(prefix="/v1")
        self.router.add_api_route("/models", self.models)
        self.router.add_api_route("/models/{name:path}", self.model)
        self.router.add_api_route("/chat/completions", self.complete, methods=["POST"])
        self.router.add_api_route("/audio/speech", self.speak, methods=["POST"])
        self.router.add_api_route("/audio/transcriptions", self.transcribe, methods=["POST"])

    async def models(self, request: Request) -> Response:
        """What is served here."""
        self.app.enter(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request, name: str) -> Response:
        """The one model."""
        self.app.enter(request)
        if name != self.app.config.model:
            raise Problem(404, f"The model '{name}' does not exist here.", "model_not_found", "model")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.app.config.model, "object": "model", "created": 0, "owned_by": "speechgpt2"}

    async def complete(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        caller = self.app.enter(request)
        asked = parsed(chat.ChatRequest, await read_json(request, self.app.config.limits.request_bytes))
        format = asked.format if asked.speaks else ""
        turns = asked.turns(self.said)
        events = await Answer.begun(self.answer(caller, asked.session(self.app.base), turns))
        answer = chat.Completion(self.app.config.model, asked.speaks)
        answer.usage.heard = chat.heard(turns)
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(self._stream(answer, events, with_usage), media_type="text/event-stream")
        return await unless_left(request, self._whole(answer, events, format))

    async def _whole(self, answer: chat.Completion, events: Answer, format: str) -> Response:
        async with aclosing(events):
            async for event in events:
                answer.take(event)
        self._remember(answer)
        return JSONResponse(answer.whole(format))

    async def _stream(self, answer: chat.Completion, events: Answer, with_usage: bool) -> AsyncIterator[str]:
        async with aclosing(events):
            async for piece in answer.pieces(events, with_usage):
                yield f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"
        self._remember(answer)
        yield "data: [DONE]\n\n"

    def _remember(self, answer: chat.Completion) -> None:
        if answer.speaks:
            self.said[answer.audio_id] = answer.text.strip()
            while len(self.said) > REMEMBERED:
                self.said.popitem(last=False)

    async def speak(self, request: Request) -> Response:
        """`/v1/audio/speech`: a text is read aloud."""
        caller = self.app.enter(request)
        asked = parsed(SpeechRequest, await read_json(request, self.app.config.limits.request_bytes))
        try:
            media = containers.media_type(asked.response_format)
        except UserError as error:
            raise Problem(400, f"response_{error}.", "invalid_value", "response_format") from None
        session = self.app.base.model_copy(update={"output_modalities": ["audio"]})
        events = await Answer.begun(self.answer(caller, session, (), read_aloud=asked.input))
        if asked.stream_format == "sse":
            return StreamingResponse(_spoken_events(events), media_type="text/event-stream")
        if asked.response_format in containers.STREAMED:
            head = containers.wav_header() if asked.response_format == "wav" else b""
            return StreamingResponse(_spoken(events, head), media_type=media)
        return await unless_left(request, _spoken_file(events, asked.response_format, media))

    async def transcribe(self, request: Request) -> Response:
        """`/v1/audio/transcriptions`: a recording is written down."""
        caller = self.app.enter(request)
        length, limit = request.headers.get("content-length"), self.app.config.limits.request_bytes
        if length is None or int(length) > limit:
            raise Problem(413, f"A form needs a Content-Length of at most {limit} bytes.", "request_too_large")
        async with request.form(max_files=1, max_part_size=limit) as form:
            asked = parsed(TranscriptionRequest, {key: value for key, value in form.items() if isinstance(value, str)})
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Problem(400, "file is missing.", "missing_required_parameter", "file")
            try:
                pcm = containers.decode(await file.read(), file.filename or "file")
            except UserError as error:
                raise Problem(400, str(error), "invalid_value", "file") from None
        session = self.app.base.model_copy(update={"output_modalities": ["text"], "max_output_tokens": 256})
        events = await Answer.begun(self.answer(caller, session, [Turn.user(speech=pcm)]))
        if asked.stream == "true":
            return StreamingResponse(_heard_events(events, len(pcm)), media_type="text/event-stream")
        text = await heard_text(events)
        if asked.response_format == "text":
            return PlainTextResponse(text + "\n")
        usage = {"type": "duration", "seconds": len(pcm) / SAMPLE_RATE}
        verbose: dict[str, Any] = {
            "language": asked.language or "",
            "duration": len(pcm) / SAMPLE_RATE,
            "segments": [],
            "words": [],
        }
        more = verbose if asked.response_format == "verbose_json" else {}
        return JSONResponse({"text": text, "usage": usage, **more})

    async def answer(
        self, caller: Caller, session: Session, turns: Sequence[Turn], read_aloud: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """What the model says to these turns, up to its `ReplyDone`. Errors: `Problem`."""
        try:
            with self.app.admission.place(caller.name):
                talk = self.app.open(settings.of_session(session, paced=False))
                try:
                    for turn in turns:
                        await asyncio.to_thread(talk.add_turn, turn)  # encodes what was spoken
                    talk.respond(ReplyOptions(text=read_aloud))
                    async for event in talk.events():
                        if isinstance(event, Error):
                            raise Problem(500, event.message, "server_error", kind="server_error")
                        yield event
                        if isinstance(event, ReplyDone):
                            return
                finally:
                    talk.close()
        except Refused as refused:
            raise self.app.refusal(refused) from None
        except UserError as error:
            raise Problem(400, str(error), "invalid_value") from None


class Answer:
    """Events of an answer, the first of which is there: a request that is refused is refused before it is answered."""

    def __init__(self, events: AsyncGenerator[Event, None], first: Event):
        self._events, self._first = events, [first]

    @classmethod
    async def begun(cls, events: AsyncGenerator[Event, None]) -> Answer:
        """Wait for the first event. Errors: `Problem`."""
        return cls(events, await anext(events))

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Event:
        return self._first.pop() if self._first else await anext(self._events)

    async def aclose(self) -> None:
        """Stop it, and give the place back."""
        await self._events.aclose()


async def unless_left(request: Request, work: Awaitable[Response]) -> Response:
    """The work's answer; if the client leaves before, the work is stopped."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parsed(model: type[Any], body: Any) -> Any:
    """A request's fields. Errors: `Problem` naming the field."""
    try:
        return checked(model, body)
    except WireError as error:
        raise Problem(400, str(error), error.code, error.param) from None


async def heard_text(events: Answer) -> str:
    """What was heard; the answer to it is not waited for."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Transcript):
                return event.text
    raise Problem(400, "This model does not tell what it heard.", "unsupported_value", "model")


async def _spoken_file(events: Answer, format: str, media: str) -> Response:
    async with aclosing(events):
        pcm = [event.pcm async for event in events if isinstance(event, AudioDelta)]
    return Response(containers.encode(np.concatenate([np.zeros(0), *pcm]), format), media_type=media)


async def _spoken(events: Answer, head: bytes) -> AsyncIterator[bytes]:
    yield head
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                yield audio.to_pcm16(event.pcm)


async def _spoken_events(events: Answer) -> AsyncIterator[str]:
    samples = 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                samples += len(event.pcm)
                sound = base64.b64encode(audio.to_pcm16(event.pcm)).decode()
                yield _sse({"type": "speech.audio.delta", "audio": sound})
    patches = samples // 2880
    usage = {"input_tokens": 0, "output_tokens": patches, "total_tokens": patches}
    yield _sse({"type": "speech.audio.done", "usage": usage})


async def _heard_events(events: Answer, samples: int) -> AsyncIterator[str]:
    text = await heard_text(events)
    for number, word in enumerate(text.split(" ")):
        yield _sse({"type": "transcript.text.delta", "delta": word if not number else f" {word}"})
    yield _sse({"type": "transcript.text.done", "text": text})


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
