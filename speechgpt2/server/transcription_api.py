"""Transcription in the form of OpenAI's REST interface.

Recordings are decoded block by block and transcribed in windows, cut at the speaker's pauses (`long_form`). A response
whose work takes long begins early and shows that the work goes on (`transcript_formats`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import Request, Response
from pydantic import BeforeValidator, Field
from starlette.datastructures import FormData, UploadFile

from speechgpt2 import long_form, word_times
from speechgpt2.audio import AudioReader, TooLong
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.long_form import SpeechWindow, TranscriptSegment
from speechgpt2.server.api_errors import ApiError, validate_request, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.long_response import LongResponse, with_heartbeats
from speechgpt2.server.reply_api import ReplyApi, Started, sse_response, unless_disconnected
from speechgpt2.server.schema import NoEffect, WireModel, ineffective
from speechgpt2.server.session_config import Temperature, other_model
from speechgpt2.server.transcript_formats import FORMATS, stream_events

T = TypeVar("T")
CLI_HINT = "; `sg2 transcribe` takes recordings of any size up to 24 h"


def _number(value: Any) -> Any:
    """Read a number from a form, in which everything is text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


class TranscriptionRequest(WireModel):
    """A request for a transcription, beside its file."""

    model: str
    language: Annotated[str | None, NoEffect("the model recognises the language itself")] = None
    prompt: Annotated[str | None, NoEffect("transcription has no prompt")] = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    stream: Literal["true", "false", "True", "False"] = "false"
    temperature: Annotated[Temperature, BeforeValidator(_number)] = 0.0
    timestamp_granularities: list[Literal["segment", "word"]] = Field(default_factory=list)
    include: Annotated[list[str], Field(max_length=0)] = Field(default_factory=list)  # there are no log probabilities
    chunking_strategy: Annotated[str | None, NoEffect("recordings are always cut at pauses")] = None

    @property
    def streams(self) -> bool:
        """Whether the client wants events."""
        return self.stream.lower() == "true"

    @property
    def times_segments(self) -> bool:
        """Whether the client wants the times of segments, as without granularities."""
        return "segment" in self.timestamp_granularities or not self.timestamp_granularities

    @property
    def times_words(self) -> bool:
        """Whether the client wants the times of words."""
        return "word" in self.timestamp_granularities


@dataclass
class Upload:
    """A recording that a client wants transcribed.

    Attributes:
        options: What the client asked for.
        reader: The recording's samples.
        warnings: What has no effect, or could not be done.
    """

    options: TranscriptionRequest
    reader: AudioReader
    warnings: list[str]

    @property
    def progress(self) -> str:
        """How much of the recording was read, as a text."""
        whole = f" of {self.reader.promised_seconds:.0f}" if self.reader.promised_seconds else ""
        return f"{self.reader.seconds:.0f}{whole} s were read"


class TranscriptionApi(ReplyApi):
    """The route of transcription."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/audio/transcriptions", self.create_transcription, methods=["POST"])

    async def create_transcription(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`: write a recording down."""
        principal = self.gateway.authenticate(request)
        self._check_size(request)
        events = await Started.start(self._transcribe(principal, request))
        upload = await anext(events)
        assert isinstance(upload, Upload)
        segments = with_heartbeats(events)
        if upload.options.streams:
            return sse_response(stream_events(segments, upload), warning_headers(upload.warnings))
        return await unless_disconnected(request, _respond(segments, upload))

    def _check_size(self, request: Request) -> None:
        """Refuse a body that is too large before it is sent, if its size is known.

        Raises:
            ApiError: 413.
        """
        limit, size = self.gateway.config.limits.request_bytes, request.headers.get("content-length", "")
        if size.isdecimal() and int(size) > limit:
            text = f"The request exceeds {limit} bytes (limits.request_bytes){CLI_HINT}."
            raise ApiError(413, text, "request_too_large", "file", headers={"Connection": "close"})

    async def _transcribe(
        self, principal: Principal, request: Request
    ) -> AsyncGenerator[Upload | TranscriptSegment, None]:
        """Read a request on a slot that is free; yield the recording, then the segments of its transcript."""
        with self.admitted(principal):
            async with self.limited(request).form(max_files=1) as form:
                upload = await self._read(form)
                windows = Windows(upload.reader)
                try:
                    await windows.read_first_block()
                    yield upload
                    while (window := await windows.next()) is not None:
                        yield await self._segment(window, upload.options)
                except TooLong as error:
                    text = f"{error} (limits.transcription_seconds){CLI_HINT}."
                    raise ApiError(400, text, "invalid_value", "file") from None
                except UserError as error:
                    raise ApiError(400, str(error), "invalid_value", "file") from None
                finally:
                    windows.stop()

    async def _read(self, form: FormData) -> Upload:
        """Read the fields of a request, and open its file.

        Raises:
            ApiError: A field is invalid, or the file is missing.
        """
        fields: dict[str, Any] = {key: value for key, value in form.items() if isinstance(value, str)}
        for key in [key for key in fields if key.endswith("[]")]:
            fields[key[:-2]] = form.getlist(key)
            del fields[key]
        options: TranscriptionRequest = validate_request(TranscriptionRequest, fields)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "file is missing.", "missing_required_parameter", "file")
        if options.times_words:
            await _check_words(options)
        reader = AudioReader(file.file, file.filename or "file", self.gateway.config.limits.transcription_seconds)
        warnings = [*ineffective(options, fields), *other_model(self.gateway.config.model, options.model)]
        return Upload(options, reader, warnings)

    async def _segment(self, window: SpeechWindow, options: TranscriptionRequest) -> TranscriptSegment:
        """Transcribe a window."""
        text = await self.transcript(window.pcm, options.temperature)
        segment = TranscriptSegment(window.start, window.end, text)
        if not options.times_words or not text:
            return segment
        return await asyncio.to_thread(word_times.with_word_times, segment, window.pcm)


class Windows:
    """The windows of a recording, decoded on a thread."""

    def __init__(self, reader: AudioReader):
        self._stopped, self._busy = False, threading.Lock()
        self._blocks = self._read_blocks(reader)
        self._windows: Iterator[SpeechWindow] = iter(())

    async def read_first_block(self) -> None:
        """Read the begin of the recording, where most files that are not audio fail."""
        first = await asyncio.to_thread(self._advance, self._blocks)
        assert first is not None
        self._windows = long_form.speech_windows(chain([first], self._blocks))

    async def next(self) -> SpeechWindow | None:
        """Return the next window, or None at the end."""
        return await asyncio.to_thread(self._advance, self._windows)

    def stop(self) -> None:
        """End decoding. This waits for the present block, since the file is closed next, but never for more."""
        self._stopped = True
        with self._busy:
            pass

    def _advance(self, items: Iterator[T]) -> T | None:
        with self._busy:
            return None if self._stopped else next(items, None)

    def _read_blocks(self, reader: AudioReader) -> Iterator[np.ndarray]:
        for block in reader:
            if self._stopped:
                return
            yield block


async def _check_words(options: TranscriptionRequest) -> None:
    """Check that the times of words can be found and returned.

    Raises:
        ApiError: They cannot.
    """
    param = "timestamp_granularities"
    if options.response_format != "verbose_json":
        text = f"{param}: word needs response_format verbose_json."
        raise ApiError(400, text, "invalid_value", param)
    try:
        await asyncio.to_thread(word_times.require_aligner)
    except MissingDependency as error:
        raise ApiError(400, f"{param}: word cannot be served here: {error}.", "unsupported_value", param) from None


async def _respond(segments: AsyncGenerator[TranscriptSegment | None, None], upload: Upload) -> Response:
    """Respond with the whole transcript, or, if it takes long, with its parts as they come."""
    media_type, parts = FORMATS[upload.options.response_format]
    response = await LongResponse.begin(parts(segments, upload), media_type)
    response.headers.update(warning_headers(upload.warnings))
    return response
