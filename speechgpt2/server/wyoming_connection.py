"""One connection of Wyoming's: events in, events out. Imports the extra `wyoming`.

Its events are those of the package. They are read here, with limits, as the package reads any number of bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.handle import Handled, NotHandled
from wyoming.info import (
    AsrModel,
    AsrProgram,
    Attribution,
    Describe,
    HandleModel,
    HandleProgram,
    Info,
    SelectProgram,
    TtsProgram,
    TtsVoice,
)
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from speechgpt2 import audio, long_form
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.schema import shorten
from speechgpt2.server.session_config import DEFAULT_VOICE
from speechgpt2.types import SAMPLE_RATE

if TYPE_CHECKING:
    from speechgpt2.server.wyoming import Wyoming

log = logging.getLogger("sg2.server")
NAME = "speechgpt2"
URL = "https://github.com/OpenMOSS/SpeechGPT-2.0-preview"
LANGUAGES = ["en", "zh"]
RATES = range(8_000, 192_001)
MAX_DATA = 2**20  # bytes of an event's data, and of its payload
MAX_SECONDS = 300  # of a recording
WRITE_TIMEOUT = 30.0  # seconds for a client to read an event


class InvalidEvent(Exception):
    """The client does not speak Wyoming; the message says what is wrong."""


class EventError(Exception):
    """An event cannot be obeyed. The client gets an error, and the connection continues."""


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """Read the next event; None at the end.

    Raises:
        InvalidEvent: The bytes are not an event.
        asyncio.IncompleteReadError: The connection ends in it.
    """
    try:
        line = await reader.readline()  # of 64 KiB at most
        if not line:
            return None
        header = _json_object(line)
        data, sizes = header.get("data") or {}, [header.get(f"{key}_length") or 0 for key in ("data", "payload")]
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"an event begins with a line of JSON ({error})") from None
    if not isinstance(header.get("type"), str) or not isinstance(data, dict):
        raise InvalidEvent("an event has a type, and data that is an object")
    if any(not isinstance(size, int) or not 0 <= size <= MAX_DATA for size in sizes):
        raise InvalidEvent(f"data and payload of an event have at most {MAX_DATA} bytes")
    more, payload = await reader.readexactly(sizes[0]), await reader.readexactly(sizes[1])
    try:
        return Event(header["type"], {**data, **(_json_object(more) if more else {})}, payload or None)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"the data of an event is JSON ({error})") from None


def _json_object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


class RequestAudio:
    """The audio of a request, in the format of its first chunk."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._rate, self._seconds = 0, 0.0

    def add(self, chunk: AudioChunk) -> None:
        """Add a chunk.

        Raises:
            EventError: Its format is not supported, or differs from that of the first chunk.
        """
        if chunk.width != 2 or not isinstance(chunk.channels, int) or not 1 <= chunk.channels <= 8:
            raise EventError("audio must have width 2 (16 bits) and 1 to 8 channels")
        if chunk.rate not in RATES or self._rate not in (0, chunk.rate):
            raise EventError(f"audio must have one rate of {RATES.start} to {RATES.stop - 1} Hz, not {chunk.rate}")
        if len(chunk.audio) % (2 * chunk.channels):
            raise EventError("audio ends in the middle of a sample")
        self._rate = chunk.rate
        self._seconds += chunk.seconds
        if self._seconds > MAX_SECONDS:
            raise EventError(f"audio is longer than {MAX_SECONDS} s")
        pcm = audio.from_pcm16(chunk.audio).reshape(-1, chunk.channels)
        self._pieces.append(pcm.mean(axis=1, dtype=np.float32))

    def pcm(self) -> np.ndarray:
        """Return all audio, `[N]` float32 at 24 kHz."""
        if not self._pieces:
            return np.zeros(0, np.float32)
        return audio.resample(np.concatenate(self._pieces), self._rate)


class WyomingConnection:
    """Serves one client.

    Args:
        server: Does what the client asks for.
        reader: Reads from the client.
        writer: Writes to the client.
    """

    def __init__(self, server: Wyoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._server, self._reader, self._writer = server, reader, writer
        self._recording: RequestAudio | None = None
        self._streamed: StreamedText | None = None

    async def run(self) -> None:
        """Handle the client's events, one after the other."""
        limits = self._server.gateway.config.limits
        seconds = limits.first_message_seconds
        try:
            while (event := await asyncio.wait_for(read_event(self._reader), seconds)) is not None:
                seconds = limits.idle_seconds
                await self._handle(event)
        except InvalidEvent as error:
            log.warning("a connection of Wyoming was refused", extra={"fields": {"reason": str(error)}})
            await self._send(Error(str(error), "invalid-event").event())
        except asyncio.TimeoutError:
            log.info("a connection of Wyoming was idle", extra={"fields": {"seconds": seconds}})

    async def _handle(self, event: Event) -> None:
        try:
            await self._act(event)
        except ApiError as error:
            await self._fail(event, str(error), str(error.body["code"]))
        except EventError as error:
            await self._fail(event, str(error), "invalid-value")
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # the package checks no types
            await self._fail(event, f"{event.type}: a field is missing or invalid ({error})", "invalid-value")

    async def _fail(self, event: Event, text: str, code: str) -> None:
        self._recording = self._streamed = None
        log.warning("an event of Wyoming failed", extra={"fields": {"event": event.type, "reason": text}})
        await self._send(Error(text, code).event())

    async def _act(self, event: Event) -> None:
        """Obey an event.

        Raises:
            ApiError, EventError: It cannot be obeyed.
        """
        kind = event.type
        if Describe.is_type(kind):
            await self._send(info(self._server).event())
        elif Ping.is_type(kind):
            await self._send(Pong(Ping.from_event(event).text).event())
        elif SelectProgram.is_type(kind):
            if (name := SelectProgram.from_event(event).name) != NAME:
                raise EventError(f"there is no program {shorten(name)} here, only {NAME}")
        elif Transcribe.is_type(kind) or AudioStart.is_type(kind):
            self._recording = RequestAudio()
            warn(event, ("name", "language", "vad_sensitivity", "transcript_names", "transcript_terms"))
        elif AudioChunk.is_type(kind):
            self._recording = self._recording or RequestAudio()
            self._recording.add(AudioChunk.from_event(event))
        elif AudioStop.is_type(kind):
            await self._transcribe()
        elif Transcript.is_type(kind):
            await self._answer(Transcript.from_event(event))
        else:
            await self._act_on_text(event)

    async def _act_on_text(self, event: Event) -> None:
        """Obey an event of synthesis."""
        kind = event.type
        if Synthesize.is_type(kind):
            if self._streamed is None:  # else it repeats the text for servers that do not stream
                await self._speak(Synthesize.from_event(event))
        elif SynthesizeStart.is_type(kind):
            start = SynthesizeStart.from_event(event)
            self._streamed = StreamedText(voice_of(start))
        elif SynthesizeChunk.is_type(kind) and self._streamed is not None:
            await self._speak_sentences(self._streamed, self._streamed.add(SynthesizeChunk.from_event(event).text))
        elif SynthesizeStop.is_type(kind) and self._streamed is not None:
            streamed = self._streamed
            await self._speak_sentences(streamed, streamed.rest())
            self._streamed = None
            await self._end_audio(streamed.started)
            await self._send(SynthesizeStopped().event())
        else:
            log.warning("an event of Wyoming has no effect", extra={"fields": {"event": kind[:60]}})

    async def _transcribe(self) -> None:
        recording, self._recording = self._recording or RequestAudio(), None
        pcm = recording.pcm()
        text = await self._server.transcribe(pcm) if len(pcm) else ""
        await self._send(Transcript(text).event())

    async def _answer(self, said: Transcript) -> None:
        context = said.context if isinstance(said.context, dict) else {}
        conversation = context.get("conversation_id")
        name = conversation if isinstance(conversation, str) else None
        answer = await self._server.answer(str(said.text), name) if str(said.text).strip() else ""
        reply = Handled(answer, said.context) if answer else NotHandled(None, said.context)
        await self._send(reply.event())

    async def _speak(self, request: Synthesize) -> None:
        sentences = long_form.sentences(request.text)
        if not sentences:
            raise EventError("text holds no letters or digits, so nothing can be said")
        streamed = StreamedText(voice_of(request))
        await self._speak_sentences(streamed, sentences)
        await self._end_audio(streamed.started)

    async def _speak_sentences(self, streamed: StreamedText, sentences: list[str]) -> None:
        if not sentences:
            return
        async with aclosing(self._server.speak(sentences, streamed.voice)) as pieces:
            async for pcm in pieces:
                if not streamed.started:
                    streamed.started = True
                    await self._send(AudioStart(SAMPLE_RATE, 2, 1).event())
                await self._send(AudioChunk(SAMPLE_RATE, 2, 1, audio.to_pcm16(pcm)).event())

    async def _end_audio(self, started: bool) -> None:
        if not started:
            await self._send(AudioStart(SAMPLE_RATE, 2, 1).event())
        await self._send(AudioStop().event())

    async def _send(self, event: Event) -> None:
        """Send an event.

        Raises:
            ConnectionError: The client has gone, or does not read.
        """
        try:
            await asyncio.wait_for(async_write_event(event, self._writer), WRITE_TIMEOUT)
        except asyncio.TimeoutError:
            self._writer.transport.abort()
            raise ConnectionAbortedError("the client reads too slowly") from None


class StreamedText:
    """A text that comes in pieces, as sentences.

    Attributes:
        voice: The voice that reads it.
        started: Whether some of it has been said.
    """

    def __init__(self, voice: str):
        self.voice, self.started = voice, False
        self._text = ""

    def add(self, text: str) -> list[str]:
        """Add a piece; returns the sentences that have become complete: another one has begun after them."""
        self._text += text
        *complete, last = long_form.sentences(self._text) or [""]
        begin = self._text.rfind(last)
        if not complete or begin < 0:
            return []
        self._text = self._text[begin:]
        return complete

    def rest(self) -> list[str]:
        """Return the sentences that are left."""
        sentences, self._text = long_form.sentences(self._text), ""
        return sentences


def warn(event: Event, names: Sequence[str]) -> None:
    """Log the fields of an event that change nothing."""
    if given := [name for name in names if event.data.get(name) is not None]:
        fields = {"event": event.type, "fields": ", ".join(given)}
        log.info("fields have no effect", extra={"fields": fields})


def voice_of(request: Synthesize | SynthesizeStart) -> str:
    """Return the name of the voice that a client wants.

    Raises:
        EventError: It wants SSML.
    """
    if request.text_format not in (None, "text"):
        raise EventError("text_format must be text")
    voice = request.voice
    if voice is not None and voice.speaker is not None:
        log.warning("voice.speaker has no effect: a voice has one speaker")
    return DEFAULT_VOICE if voice is None or voice.name is None else voice.name


def info(server: Wyoming) -> Info:
    """Describe what the server offers."""
    model = server.gateway.config.model
    artifact: dict[str, Any] = {"attribution": Attribution(NAME, URL), "installed": True, "version": None}
    program = {"name": NAME, "description": "Spoken dialogue", **artifact}
    described = {"name": model, "description": model, "languages": LANGUAGES, **artifact}
    voices = [
        TtsVoice(**{**described, "name": name, "description": name})
        for name in server.gateway.voices.choices or [server.gateway.voices.default]
    ]
    return Info(
        asr=[AsrProgram(models=[AsrModel(**described)], **program)],
        tts=[TtsProgram(voices=voices, supports_synthesize_streaming=True, **program)],
        handle=[HandleProgram(models=[HandleModel(**described)], **program)],
    )
