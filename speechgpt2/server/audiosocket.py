"""Telephone calls from Asterisk by AudioSocket: frames over TCP, with 16-bit audio at 8 kHz.

    Asterisk                              this server
    0x01 UUID of the call ───────────►    admission
    0x10 audio ──────────────────────►    the user's audio
                     ◄───────────────     0x10 audio, a frame every 20 ms: Asterisk buffers little
    0x03 a key, 0xff an error ───────►    the log
    0x00 hang-up ◄───────────────────►    the end

A frame is a byte of its kind, two bytes of its length (big-endian), and the payload.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
import uuid
from contextlib import suppress
from typing import Any

from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.audio_formats import WireEncoder, WireFormat
from speechgpt2.server.auth import Principal
from speechgpt2.server.channel import CLIENT_DISCONNECTED, ClientDisconnected
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.messages import ClientMessage
from speechgpt2.server.phone_session import Digit, PhoneSession, log_event
from speechgpt2.server.playout import FRAME
from speechgpt2.server.realtime import make_session
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.tcp import TcpProtocol
from speechgpt2.types import SAMPLE_RATE

log = logging.getLogger("sg2.realtime")
FORMAT: WireFormat = "audio/pcm;rate=8000"
HANG_UP, UUID, DTMF, AUDIO, ERROR = 0x00, 0x01, 0x03, 0x10, 0xFF
OTHER_RATES = range(0x11, 0x19)  # audio at 12 … 192 kHz
FRAME_SECONDS = FRAME / SAMPLE_RATE
MAX_LATENESS = 0.1  # seconds; frames later than this are not caught up
SILENCE_SECONDS = 0.5  # without audio from Asterisk, which then count as silence
CLOSE_TIMEOUT = 1.0  # seconds


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">BH", kind, len(payload)) + payload


class AudioReceived(ClientMessage):
    """A piece of the user's audio."""

    pcm: bytes


class AudioSocketSerializer:
    """Converts frames to messages. See `channel.Serializer`."""

    def deserialize(self, data: str | bytes) -> ClientMessage:
        """Parse a frame.

        Raises:
            ProtocolError: This server does not know frames of its kind.
            ClientDisconnected: It is a hang-up.
        """
        assert isinstance(data, bytes)
        kind, payload = data[0], data[3:]
        if kind == AUDIO:
            return AudioReceived(pcm=payload)
        if kind == DTMF:
            return Digit(digit=payload[:1].decode("latin-1"))
        if kind == HANG_UP:
            raise ClientDisconnected(1000)
        if kind == ERROR:
            raise ProtocolError(f"Asterisk reports the error 0x{payload.hex() or '00'}.", "asterisk_error")
        if kind in OTHER_RATES:
            raise ProtocolError("Audio must have 8 kHz: set the codec of the channel to slin.", "unsupported_value")
        raise ProtocolError(f"A frame of the kind 0x{kind:02x} is unknown here.")

    def serialize(self, event: dict[str, Any]) -> None:
        """Log errors; Asterisk takes no events."""
        log_event(event)


class AudioSocketSession(PhoneSession):
    """A Realtime session on a telephone of Asterisk's. See `PhoneSession`."""

    wire_format = FORMAT

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a message of Asterisk. See `WireSession`."""
        if isinstance(message, AudioReceived):
            self.append_audio(message.pcm)
        else:
            await super().handle_message(message)


class AudioSocketTransport:
    """A connection of Asterisk's. See `channel.Transport`.

    Attributes:
        received_at: When the latest frame came, in seconds of `time.monotonic`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self.received_at = time.monotonic()

    async def receive(self) -> bytes:
        """Wait for the next frame.

        Raises:
            ClientDisconnected: Asterisk has closed the connection.
        """
        try:
            header = await self._reader.readexactly(3)
            payload = await self._reader.readexactly(struct.unpack(">H", header[1:])[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClientDisconnected(1000) from None
        self.received_at = time.monotonic()
        return header + payload

    async def send(self, data: str | bytes) -> None:
        """Send a frame; wait while Asterisk does not read."""
        assert isinstance(data, bytes)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            raise ClientDisconnected(1006) from None

    async def exchange_audio(self, session: AudioSocketSession) -> None:
        """Send the model's audio at the speed of its playback, and let missing audio of the user be silence."""
        encoder, due = WireEncoder(FORMAT), time.monotonic()
        while True:
            now = time.monotonic()
            due = max(due, now - MAX_LATENESS)
            await asyncio.sleep(due - now)
            due += FRAME_SECONDS
            await self.send(frame(AUDIO, encoder.push(session.playout.next_frame())))
            if now - self.received_at > SILENCE_SECONDS:
                session.append_audio(bytes(2 * 8 * 20), received=False)


class AudioSocket(TcpProtocol):
    """Accepts calls from Asterisk."""

    name = "AudioSocket"
    principal = Principal("audiosocket")

    def address(self, config: ServerConfig) -> str | None:
        """Return the address on which to listen. See `TcpProtocol`."""
        return config.audiosocket

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run a call, or hang up. See `TcpProtocol`."""
        transport = AudioSocketTransport(reader, writer)
        reason = ""
        try:
            reason = await self._call(transport)
        except AdmissionError as error:
            reason = str(self.gateway.rejection(error))
            log.warning("a call was refused", extra={"fields": {"reason": reason}})
        except ProtocolError as error:
            reason = str(error)
            log.warning("a call was refused", extra={"fields": {"reason": reason}})
        except ClientDisconnected:
            return  # before the call has begun
        if reason != CLIENT_DISCONNECTED:
            with suppress(ClientDisconnected, asyncio.TimeoutError):
                await asyncio.wait_for(transport.send(frame(HANG_UP)), CLOSE_TIMEOUT)

    async def _call(self, transport: AudioSocketTransport) -> str:
        """Run a call to its end; returns the reason of the end."""
        call = await self._read_id(transport)
        config = self.gateway.session_config(self.principal)
        with self.gateway.admission.admit(self.principal.key_id), self.gateway.open_dialogue(config) as dialogue:
            session = make_session(AudioSocketSession, self.gateway, AudioSocketSerializer(), dialogue, config)
            log.info("a call begins", extra={"fields": {"session": session.id, "call": str(call)}})
            with self.gateway.register(session):
                session.greet()
                running = session.channel.run(session, transport, transport.exchange_audio(session))
                return (await self.gateway.run_session(session, self.principal, running))[1]

    async def _read_id(self, transport: AudioSocketTransport) -> uuid.UUID:
        """Read the first frame, which names the call.

        Raises:
            ProtocolError: It is another frame, or does not come in time.
        """
        seconds = self.gateway.config.limits.first_message_seconds
        try:
            first = await asyncio.wait_for(transport.receive(), seconds)
        except asyncio.TimeoutError:
            raise ProtocolError(f"No call began within {seconds:.0f} s.") from None
        if first[0] != UUID or len(first) != 19:
            raise ProtocolError("A call begins with its UUID of 16 bytes.")
        return uuid.UUID(bytes=first[3:])
