"""Speech synthesis and transcription in the form of OpenAI's REST interface.

Texts of any length are read sentence by sentence. Recordings are decoded block by block and transcribed in windows,
cut at the speaker's pauses (`long_form`).
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BeforeValidator, Field
from starlette.datastructures import UploadFile

from speechgpt2 import audio, long_form
from speechgpt2.audio import AudioReader
from speechgpt2.errors import UserError
from speechgpt2.long_form import TranscriptSegment
from speechgpt2.server import audio_files
from speechgpt2.server.api_errors import ApiError, validate_request, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.reply_api import (
    ReplyApi,
    Started,
    format_sse,
    sse_response,
    unless_disconnected,
)
from speechgpt2.server.schema import NoEffect, WireModel, ineffective
from speechgpt2.server.session_config import DEFAULT_VOICE, Seed, SessionConfig, Temperature, VoiceName, other_model
from speechgpt2.types import PATCH_SAMPLES, AudioDelta, Event, ReplyDone, Transcript, Turn

MAX_TRANSCRIPT_TOKENS = 256  # of one window


class SpeechRequest(WireModel):
    """A request for speech synthesis. `seed` is an extension."""

    model: str
    input: str = Field(min_length=1, max_length=4096)
    voice: VoiceName = DEFAULT_VOICE
    instructions: Annotated[str, NoEffect("the model reads in one way")] = ""
    response_format: str = "mp3"
    speed: Annotated[float, NoEffect("speech has its own speed")] = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    seed: Seed | None = None


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
    timestamp_granularities: list[Literal["segment"]] = Field(default_factory=list)  # words have no times here
    include: Annotated[list[str], Field(max_length=0)] = Field(default_factory=list)  # there are no log probabilities
    chunking_strategy: Annotated[str | None, NoEffect("recordings are always cut at pauses")] = None


@dataclass
class Upload:
    """A recording that a client wants transcribed.

    Attributes:
        options: The options of the request.
        reader: The recording's samples.
        warnings: Fields of the request that have no effect.
    """

    options: TranscriptionRequest
    reader: AudioReader
    warnings: list[str]


class AudioApi(ReplyApi):
    """The routes of speech synthesis and transcription."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/audio/speech", self.create_speech, methods=["POST"])
        self.router.add_api_route("/v1/audio/transcriptions", self.create_transcription, methods=["POST"])

    # speech

    async def create_speech(self, request: Request) -> Response:
        """`POST /v1/audio/speech`: read a text aloud."""
        principal, speech, warnings = await self.read_json(request, SpeechRequest)
        headers = warning_headers([*self.gateway.voices.warnings(speech.voice, "voice"), *warnings])
        config = self.with_voice(self.gateway.default_session, speech.voice, "voice")
        config = config.model_copy(update={"output_modalities": ["audio"], "seed": speech.seed})
        try:
            media_type = audio_files.media_type(speech.response_format)
        except UserError as error:
            raise ApiError(400, f"response_{error}.", "invalid_value", "response_format") from None

        async def respond() -> Response:
            events = await Started.start(self._read_aloud(principal, config, speech.input))
            if speech.stream_format == "sse":
                return sse_response(_stream_speech_events(events), headers)
            if speech.response_format in audio_files.STREAMABLE:
                header = audio_files.wav_header() if speech.response_format == "wav" else b""
                return StreamingResponse(_stream_speech(events, header), media_type=media_type, headers=headers)
            return await _speech_file(events, speech.response_format, media_type, headers)

        return await unless_disconnected(request, respond())

    async def _read_aloud(self, principal: Principal, config: SessionConfig, text: str) -> AsyncGenerator[Event, None]:
        """Yield the events of reading a text, sentence after sentence."""
        sentences = long_form.sentences(text)
        if not sentences:
            raise ApiError(400, "input holds no letters or digits, so nothing can be said.", "invalid_value", "input")
        with self.admitted(principal):
            for sentence in sentences:
                async with aclosing(self.reply(config, (), sentence)) as events:
                    async for event in events:
                        yield event

    # transcription

    async def create_transcription(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`: transcribe a recording."""
        principal = self.gateway.authenticate(request)
        events = await Started.start(self._transcribe(principal, request))
        upload = await anext(events)
        assert isinstance(upload, Upload)
        if upload.options.stream.lower() == "true":
            return sse_response(_stream_transcript(events), warning_headers(upload.warnings))
        return await unless_disconnected(request, _transcription(events, upload))

    async def _transcribe(
        self, principal: Principal, request: Request
    ) -> AsyncGenerator[Upload | TranscriptSegment, None]:
        """Take a slot, read the request, yield its `Upload`, then yield the segments of its transcript."""
        with self.admitted(principal):
            async with self.limited(request).form(max_files=1) as form:
                fields: dict[str, Any] = {key: value for key, value in form.items() if isinstance(value, str)}
                for key in [key for key in fields if key.endswith("[]")]:
                    fields[key[:-2]] = form.getlist(key)
                    del fields[key]
                options: TranscriptionRequest = validate_request(TranscriptionRequest, fields)
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise ApiError(400, "file is missing.", "missing_required_parameter", "file")
                seconds = self.gateway.config.limits.transcription_seconds
                reader = AudioReader(file.file, file.filename or "file", seconds)
                try:
                    windows = long_form.speech_windows(reader)
                    window = await asyncio.to_thread(next, windows, None)  # decodes, so it does not hold up the others
                    yield Upload(
                        options,
                        reader,
                        [*ineffective(options, fields), *other_model(self.gateway.config.model, options.model)],
                    )
                    while window is not None:
                        text = await self._transcript(window.pcm, options.temperature)
                        yield TranscriptSegment(window.start, window.end, text)
                        window = await asyncio.to_thread(next, windows, None)
                except UserError as error:
                    raise ApiError(400, str(error), "invalid_value", "file") from None

    async def _transcript(self, pcm: np.ndarray, temperature: float) -> str:
        """Return the model's transcript of `pcm [N]`, without waiting for its reply.

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


async def _speech_file(events: Started[Event], format: str, media_type: str, headers: dict[str, str]) -> Response:
    async with aclosing(events):
        pcm = [event.pcm async for event in events if isinstance(event, AudioDelta)]
    data = await asyncio.to_thread(audio_files.encode_file, np.concatenate([np.zeros(0), *pcm]), format)
    return Response(data, media_type=media_type, headers=headers)


async def _stream_speech(events: Started[Event], header: bytes) -> AsyncIterator[bytes]:
    yield header
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                yield audio.to_pcm16(event.pcm)


async def _stream_speech_events(events: Started[Event]) -> AsyncGenerator[str, None]:
    samples = 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AudioDelta):
                samples += len(event.pcm)
                data = base64.b64encode(audio.to_pcm16(event.pcm)).decode()
                yield format_sse({"type": "speech.audio.delta", "audio": data})
    patches = samples // PATCH_SAMPLES
    usage = {"input_tokens": 0, "output_tokens": patches, "total_tokens": patches}
    yield format_sse({"type": "speech.audio.done", "usage": usage})


async def _transcription(events: Started[Upload | TranscriptSegment], upload: Upload) -> Response:
    """Collect the segments and format them as the client wants."""
    async with aclosing(events):
        segments = [event async for event in events if isinstance(event, TranscriptSegment)]
    text, format = long_form.join(segment.text for segment in segments), upload.options.response_format
    headers = warning_headers(upload.warnings + ([upload.reader.warning] if upload.reader.warning else []))
    if format == "text":
        return PlainTextResponse(text + "\n", headers=headers)
    if format in ("srt", "vtt"):
        parts = long_form.to_srt(segments) if format == "srt" else long_form.to_vtt(segments)
        return PlainTextResponse(
            "".join(parts), media_type="text/vtt" if format == "vtt" else "text/plain", headers=headers
        )
    seconds = upload.reader.seconds
    body: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
    if format == "verbose_json":
        rows = [{"id": n, "start": s.start, "end": s.end, "text": s.text} for n, s in enumerate(segments)]
        language = "chinese" if long_form.CHINESE.search(text) else "english"
        body |= {"task": "transcribe", "language": language, "duration": seconds, "segments": rows}
    return JSONResponse(body, headers=headers)


async def _stream_transcript(events: Started[Upload | TranscriptSegment]) -> AsyncGenerator[str, None]:
    """Yield the words of each segment as soon as it is transcribed."""
    text = ""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TranscriptSegment):
                longer = long_form.join([text, event.text])
                for word in re.findall(r"\s*\S+", longer[len(text) :]):
                    yield format_sse({"type": "transcript.text.delta", "delta": word})
                text = longer
    yield format_sse({"type": "transcript.text.done", "text": text})
