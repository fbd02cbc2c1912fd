"""Speech synthesis in the form of OpenAI's REST interface. Texts of any length are read sentence by sentence."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Literal

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from speechgpt2 import audio, long_form
from speechgpt2.errors import UserError
from speechgpt2.server import audio_files
from speechgpt2.server.api_errors import ApiError, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.reply_api import (
    ReplyApi,
    Started,
    format_sse,
    sse_response,
    unless_disconnected,
)
from speechgpt2.server.schema import WireModel
from speechgpt2.server.session_config import DEFAULT_VOICE, AnySpeed, Seed, SessionConfig, StyleNames, VoiceName
from speechgpt2.style import table
from speechgpt2.style_requests import styles_in
from speechgpt2.types import PATCH_SAMPLES, AudioDelta, Event

MAX_WORD = 240  # letters; no word is so long, and the model would skip most of them


class SpeechRequest(WireModel):
    """A request for speech synthesis. `seed` and `style` are extensions; `instructions` may name styles."""

    model: str
    input: str = Field(min_length=1, max_length=4096)
    voice: VoiceName = DEFAULT_VOICE
    instructions: str = ""
    response_format: str = "mp3"
    speed: AnySpeed | None = None
    style: StyleNames | None = None
    stream_format: Literal["audio", "sse"] = "audio"
    seed: Seed | None = None

    @property
    def styles(self) -> str | None:
        """The styles that `style` names, or else `instructions`."""
        return self.style or ", ".join(styles_in(self.instructions)) or None

    def warnings(self) -> list[str]:
        """Return a warning about instructions that have no effect."""
        if not self.instructions.strip() or (self.style is None and self.styles):
            return []
        why = "style has named a style" if self.style else f"they name none of the styles {', '.join(table())}"
        return [f"instructions has no effect: {why}"]


class SpeechApi(ReplyApi):
    """The route of speech synthesis."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/audio/speech", self.create_speech, methods=["POST"])

    async def create_speech(self, request: Request) -> Response:
        """`POST /v1/audio/speech`: read a text aloud."""
        principal, speech, warnings = await self.read_json(request, SpeechRequest)
        warnings = [*self.gateway.voices.warnings(speech.voice, "voice"), *warnings, *speech.warnings()]
        config = self.with_voice(self.gateway.default_session, speech.voice, "voice")
        config = config.model_copy(update={"output_modalities": ["audio"], "seed": speech.seed})
        config = config.with_delivery(speech.speed, speech.styles)
        try:
            media_type = audio_files.media_type(speech.response_format)
        except UserError as error:
            raise ApiError(400, f"response_{error}.", "invalid_value", "response_format") from None

        async def respond() -> Response:
            faults: list[str] = []  # of the speech, which a stream's headers cannot tell
            events = await Started.start(self._read_aloud(principal, config, speech.input, faults))
            if speech.stream_format != "sse" and speech.response_format not in audio_files.STREAMABLE:
                data = await _speech_file(events, speech.response_format)
                return Response(data, media_type=media_type, headers=warning_headers([*warnings, *faults]))
            headers = warning_headers(warnings)
            if speech.stream_format == "sse":
                return sse_response(_stream_speech_events(events), headers)
            header = audio_files.wav_header() if speech.response_format == "wav" else b""
            return StreamingResponse(_stream_speech(events, header), media_type=media_type, headers=headers)

        return await unless_disconnected(request, respond())

    async def _read_aloud(
        self, principal: Principal, config: SessionConfig, text: str, faults: list[str]
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of reading a text, sentence after sentence, and collect the faults of its speech."""
        sentences = long_form.sentences(text)
        if not sentences:
            raise ApiError(400, "input holds no letters or digits, so nothing can be said.", "invalid_value", "input")
        if (longest := max(map(long_form.width, sentences))) > MAX_WORD:  # longer only if a single word is
            why = f"input holds a word of {longest:,} letters; at most {MAX_WORD} can be read aloud."
            raise ApiError(400, why, "invalid_value", "input")
        with self.admitted(principal):
            async with aclosing(self.read_aloud(config, sentences, faults)) as events:
                async for event in events:
                    yield event


async def _speech_file(events: Started[Event], format: str) -> bytes:
    async with aclosing(events):
        pcm = [event.pcm async for event in events if isinstance(event, AudioDelta)]
    return await asyncio.to_thread(audio_files.encode_file, np.concatenate([np.zeros(0), *pcm]), format)


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
