"""Telephone calls by Twilio's Media Streams: WS /v1/twilio, with messages of JSON and µ-law audio at 8 kHz.

    Twilio                                this server
    connected, start ────────────────►    admission: the key is a parameter of the stream
    media ───────────────────────────►    the user's audio
                     ◄───────────────     media, and a mark after each: the model's audio, which Twilio buffers
    mark ────────────────────────────►    that audio has been played
                     ◄───────────────     clear: the user interrupts, so Twilio drops what it has not played
    stop ────────────────────────────►    the call has ended

https://www.twilio.com/docs/voice/media-streams/websocket-messages describes the messages.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from fastapi import WebSocket
from pydantic import Field

from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.audio_formats import WireEncoder, WireFormat
from speechgpt2.server.auth import Principal
from speechgpt2.server.channel import CLIENT_DISCONNECTED, Channel, ClientDisconnected
from speechgpt2.server.gateway import Gateway, WireProtocol
from speechgpt2.server.messages import ClientMessage, InputAudioAppend
from speechgpt2.server.phone_session import Digit, PhoneSession, log_event
from speechgpt2.server.playout import PlayoutListener
from speechgpt2.server.realtime import make_session
from speechgpt2.server.response import RealtimeResponse
from speechgpt2.server.schema import ProtocolError, WireModel, parse_json, validate
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.websocket import WebSocketTransport, close_socket, reject

log = logging.getLogger("sg2.realtime")
FORMAT: WireFormat = "audio/pcmu"
ENCODING = "audio/x-mulaw"  # Twilio's name of the same
KEY = "key"  # the parameter of a stream that holds the API key
SETTINGS = ("persona", "voice", "instructions")  # parameters that are settings of the session

# messages


class MediaContent(WireModel):
    """Audio: `payload` is base64. `track` is that of the person on the telephone, or of the other side."""

    payload: str
    track: str = "inbound"


class MarkContent(WireModel):
    """A mark that was sent after a piece of audio."""

    name: str


class Dtmf(WireModel):
    """A key that was pressed."""

    digit: str


class MediaFormat(WireModel):
    """The format of the audio."""

    encoding: str = ENCODING
    sampleRate: int = 8000  # noqa: N815 (Twilio's name)
    channels: int = 1


class StreamStart(WireModel):
    """What is known about a stream."""

    streamSid: str  # noqa: N815
    callSid: str = ""  # noqa: N815
    customParameters: dict[str, str] = Field(default_factory=dict)  # noqa: N815
    mediaFormat: MediaFormat = MediaFormat()  # noqa: N815


class StreamMessage(WireModel):
    """A message of Twilio: the field that `event` names is there."""

    event: str
    start: StreamStart | None = None
    media: MediaContent | None = None
    mark: MarkContent | None = None
    dtmf: Dtmf | None = None


class Played(ClientMessage):
    """The audio before a mark has been played."""

    name: str


class Stopped(ClientMessage):
    """The call has ended."""


class Ignored(ClientMessage):
    """A message without effect."""


def to_client_message(message: StreamMessage) -> ClientMessage:
    """Return what a message of Twilio means to the session.

    Raises:
        ProtocolError: The message is unknown, or lacks its field.
    """
    match message:
        case StreamMessage(event="media", media=MediaContent() as media):
            return InputAudioAppend(audio=media.payload) if media.track == "inbound" else Ignored()
        case StreamMessage(event="mark", mark=MarkContent() as mark):
            return Played(name=mark.name)
        case StreamMessage(event="dtmf", dtmf=Dtmf() as dtmf):
            return Digit(digit=dtmf.digit)
        case StreamMessage(event="stop"):
            return Stopped()
    raise ProtocolError(f"A message {message.event!r} is unknown here, or has no field of this name.", param="event")


class TwilioSerializer:
    """Converts between Twilio's messages and those of the session. See `channel.Serializer`."""

    def __init__(self, stream: str):
        self._stream = stream

    def deserialize(self, data: str | bytes) -> ClientMessage:
        """Parse a message.

        Raises:
            ProtocolError: It is not valid.
        """
        return to_client_message(validate(StreamMessage, parse_json(data)))

    def serialize(self, event: dict[str, Any]) -> str | None:
        """Format a message to Twilio; None for events of OpenAI Realtime, which are not for telephones."""
        if "event" not in event:
            log_event(event)
            return None
        return json.dumps({**event, "streamSid": self._stream})


# the session


@dataclass(eq=False)
class HeldAudio:
    """The audio of one response, as `PlayoutEntry`, in samples at 24 kHz.

    Attributes:
        pushed: Samples that Twilio has got.
        sent: Samples that it has played.
        complete: Whether no more audio comes.
    """

    response: RealtimeResponse
    pushed: int = 0
    sent: int = 0
    complete: bool = False


class MarkedPlayout:
    """The audio of responses that Twilio holds. It has the interface of `PlayoutBuffer`, as far as a session uses it.

    Args:
        listener: Gets the start and the end of every response's playout.
        channel: Carries messages to Twilio.
    """

    def __init__(self, listener: PlayoutListener, channel: Channel[ClientMessage]):
        self._listener, self._channel = listener, channel
        self._entries: list[HeldAudio] = []
        self._marks: dict[str, tuple[HeldAudio, int]] = {}  # by name: its response, and the samples up to it
        self._count = 0
        self._encoder = WireEncoder(FORMAT)

    @property
    def busy(self) -> bool:
        """Whether a response has not been played completely."""
        return bool(self._entries)

    def push(self, response: RealtimeResponse, pcm: np.ndarray) -> None:
        """Send `pcm [N]` at 24 kHz of a response, and a mark after it."""
        if not self._entries or self._entries[-1].response is not response:
            self._entries.append(HeldAudio(response))
            self._listener.playout_started(response)
        entry, self._count = self._entries[-1], self._count + 1
        entry.pushed += len(pcm)
        payload = base64.b64encode(self._encoder.push(pcm)).decode()
        self._channel.send({"event": "media", "media": {"payload": payload}})
        self._marks[str(self._count)] = (entry, entry.pushed)
        self._channel.send({"event": "mark", "mark": {"name": str(self._count)}})

    def played(self, name: str) -> None:
        """Twilio has played the audio before a mark, or has dropped it: then the mark is not known any more."""
        if name in self._marks:
            entry, samples = self._marks.pop(name)
            entry.sent = samples
            self._end(entry)

    def finish(self, response: RealtimeResponse) -> None:
        """Mark a response as complete."""
        for entry in [entry for entry in self._entries if entry.response is response]:
            entry.complete = True
            self._end(entry)

    def clear(self) -> list[HeldAudio]:
        """Have Twilio drop what it has not played; returns the entries that are cut short."""
        dropped = list(self._entries)
        self._entries.clear()
        self._marks.clear()
        if dropped:
            self._encoder = WireEncoder(FORMAT)
            self._channel.send({"event": "clear"})
        return dropped

    def _end(self, entry: HeldAudio) -> None:
        if entry.complete and entry.sent == entry.pushed:
            self._entries.remove(entry)
            self._listener.playout_stopped(entry.response)


class TwilioSession(PhoneSession):
    """A Realtime session on a telephone of Twilio's. See `PhoneSession`."""

    wire_format = FORMAT

    @cached_property
    def playout(self) -> MarkedPlayout:  # type: ignore[override]
        """The audio that Twilio holds."""
        return MarkedPlayout(self, self.channel)

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a message of Twilio. See `WireSession`."""
        match message:
            case Played():
                self.playout.played(message.name)
            case Stopped():
                raise ClientDisconnected(1000)
            case Ignored():
                pass
            case _:
                await super().handle_message(message)


class TwilioMediaStreams(WireProtocol):
    """The route of calls from Twilio."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_websocket_route("/v1/twilio", self.connect)

    async def connect(self, socket: WebSocket) -> None:
        """Run a call. Its key comes with the first messages, so that it is refused after the upgrade only."""
        try:
            self.gateway.check_address(socket)
        except ApiError as error:
            await reject(socket, error)
            return
        await socket.accept()
        try:
            await self._call(socket)
        except (ApiError, ProtocolError) as error:
            await refuse(socket, 1008, str(error))
        except AdmissionError as error:
            await refuse(socket, 1013, str(self.gateway.rejection(error)))
        except ClientDisconnected:
            pass  # before the call has begun

    async def _call(self, socket: WebSocket) -> None:
        transport, limits = WebSocketTransport(socket), self.gateway.config.limits
        try:
            start = await asyncio.wait_for(read_start(transport), limits.first_message_seconds)
        except asyncio.TimeoutError:
            text = f"No stream was started within {limits.first_message_seconds:.0f} s."
            raise ProtocolError(text) from None
        header = socket.headers.get("authorization")
        key = start.customParameters.get(KEY)
        principal = self.gateway.authenticate_key(header if key is None else f"Bearer {key}")
        config = self._configure(principal, start)
        with self.gateway.admission.admit(principal.key_id), self.gateway.open_dialogue(config) as dialogue:
            session = make_session(TwilioSession, self.gateway, TwilioSerializer(start.streamSid), dialogue, config)
            log.info("a call begins", extra={"fields": {"session": session.id, "call": start.callSid}})
            with self.gateway.register(session):
                session.greet()
                running = session.channel.run(session, transport)
                code, reason = await self.gateway.run_session(session, principal, running)
        if reason != CLIENT_DISCONNECTED:
            await close_socket(socket, code, reason)

    def _configure(self, principal: Principal, start: StreamStart) -> SessionConfig:
        """Return the settings of a call: those of its key, then those of the stream's parameters.

        Raises:
            ApiError, ProtocolError: A setting is invalid.
        """
        parameters = {key: value for key, value in start.customParameters.items() if key != KEY}
        if unknown := sorted(parameters.keys() - set(SETTINGS)):
            text = f"parameters of a stream without effect: {', '.join(unknown)}; {', '.join(SETTINGS)} have one"
            log.warning(text, extra={"fields": {"call": start.callSid}})
        changes: dict[str, Any] = {key: parameters[key] for key in ("persona", "instructions") if key in parameters}
        if "voice" in parameters:
            changes["audio"] = {"output": {"voice": parameters["voice"]}}
        config = self.gateway.updated(self.gateway.session_config(principal), changes)
        return self.gateway.voices.resolve(config, "customParameters")


async def read_start(transport: WebSocketTransport) -> StreamStart:
    """Read the messages up to the start of a stream.

    Raises:
        ProtocolError: They are not those of Twilio, or the audio has another format.
        ClientDisconnected: The call has ended.
    """
    while True:
        message = validate(StreamMessage, parse_json(await transport.receive()))
        if message.event == "start" and message.start is not None:
            media = message.start.mediaFormat
            if (media.encoding, media.sampleRate, media.channels) != (ENCODING, 8000, 1):
                text = f"start.mediaFormat must be {ENCODING} at 8000 Hz with one channel."
                raise ProtocolError(text, param="start.mediaFormat")
            return message.start
        if message.event != "connected":
            raise ProtocolError("A stream begins with the messages connected and start.", param="event")


async def refuse(socket: WebSocket, code: int, reason: str) -> None:
    """End a call that does not begin. Twilio goes on with what follows its stream."""
    client = socket.client.host if socket.client else "unknown"
    log.warning("a call was refused", extra={"fields": {"client": client, "reason": reason}})
    await close_socket(socket, code, reason)
