"""The loops of one session, the same for every wire protocol.

    Transport.receive ─► Serializer.deserialize ─► WireSession.handle_message ─► Dialogue
    Transport.send ◄─ OutboundQueue ◄─ Serializer.serialize ◄─ Channel.send ◄─ WireSession.handle_event ◄─ Dialogue

A client's mistake becomes an error event, and the session continues. Only limits, and a failure of the engine, end a
session: `SessionClosed`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar

from speechgpt2.duplex.protocol import Dialogue, DialogueEvent
from speechgpt2.errors import UserError
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.outbound import OutboundQueue, SlowConsumerError
from speechgpt2.server.schema import ProtocolError

log = logging.getLogger("sg2.realtime")
FLUSH_TIMEOUT = 1.0  # seconds to send the last events
LIMIT_CHECK_INTERVAL = 0.25  # seconds
BACKLOG_POLL_INTERVAL = 0.01  # seconds
CLIENT_DISCONNECTED = "client disconnected"
SLOW_CLIENT = "the client reads too slowly: the outbound queue is full"
ENGINE_ENDED = "the engine has ended this session after a failure: open another one"

M = TypeVar("M")
MessageOut = TypeVar("MessageOut", covariant=True)


class SessionClosed(Exception):
    """The server ends the session, with a WebSocket close code and a reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class ClientDisconnected(Exception):
    """The client has gone, with a WebSocket close code or its equivalent of another transport."""

    def __init__(self, code: int, reason: str = CLIENT_DISCONNECTED):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Transport(Protocol):
    """A connection to one client that carries messages."""

    async def receive(self) -> str | bytes:
        """Wait for the client's next message.

        Raises:
            ClientDisconnected: No more messages come.
        """
        ...

    async def send(self, data: str | bytes) -> None:
        """Send one message; wait while the client does not read."""
        ...


class Serializer(Protocol[MessageOut]):
    """Converts between data on the wire and the messages and events of one wire protocol."""

    def deserialize(self, data: str | bytes) -> MessageOut:
        """Parse a client message.

        Raises:
            ProtocolError: It is invalid.
        """
        ...

    def serialize(self, event: Any) -> str | bytes | None:
        """Format a server event; None if the transport carries it in another way."""
        ...


class WireSession(ABC, Generic[M]):
    """One client's session in one wire protocol: translates messages into calls of a dialogue, and events back.

    The protocol of OpenAI, also for WebRTC and telephones, is `server.realtime.RealtimeSession`.
    """

    id: str
    dialogue: Dialogue
    channel: Channel[M]

    @abstractmethod
    async def handle_message(self, message: M) -> None:
        """Act on a client message.

        Raises:
            ProtocolError, UserError: The client made a mistake.
            ClientDisconnected: The message says that the client leaves.
        """

    @abstractmethod
    def handle_event(self, event: DialogueEvent) -> None:
        """Act on an event of the dialogue. Must not block."""

    @abstractmethod
    def handle_error(self, error: ProtocolError, message: M | None) -> None:
        """Report an error to the client; `message` caused it, unless it is None."""

    async def work(self) -> None:
        """Do what goes on beside messages and events. Cancelled when the session ends, which ends when this does."""
        await asyncio.Event().wait()

    @abstractmethod
    def drain(self) -> None:
        """Close the session as soon as no response is in progress."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return what the log says about the session: no transcripts, no audio."""


class Channel(Generic[M]):
    """Connects one session to one transport.

    Args:
        serializer: The encoder and decoder of the wire protocol's messages.
        limits: Session length, idle time, size of the outbound queue.
    """

    def __init__(self, serializer: Serializer[M], limits: LimitsConfig):
        self.serializer, self.limits = serializer, limits
        self.outbound = OutboundQueue(limits.outbound_bytes)
        self.opened_at = self.active_at = time.monotonic()
        self._closing: SessionClosed | None = None
        self._closing_set = asyncio.Event()

    def send(self, event: Any) -> None:
        """Queue a server event.

        Raises:
            SlowConsumerError: The client reads too slowly.
        """
        data = self.serializer.serialize(event)
        if data is not None:
            self.outbound.put(data)

    def touch(self) -> None:
        """Restart the idle timer."""
        self.active_at = time.monotonic()

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then end the session. The first call decides code and reason."""
        self._closing = self._closing or SessionClosed(code, reason)
        self._closing_set.set()  # a client that reads nothing must not keep the session open
        self.outbound.close()

    async def run(self, session: WireSession[M], transport: Transport, *background: Coroutine[Any, Any, None]) -> None:
        """Run the session until one side ends it.

        Args:
            session: The session that handles messages and events.
            transport: The client's connection.
            background: More coroutines to run as long as the session; the session ends when one of them ends.

        Raises:
            SessionClosed: The server ended the session.
            ClientDisconnected: The client has gone.
        """
        writing = asyncio.ensure_future(self._write(transport))
        others = (
            self._read(session, transport),
            self._follow(session),
            self._watch_limits(session),
            session.work(),
            self._closing_set.wait(),
            *background,
        )
        tasks = [writing, *map(asyncio.ensure_future, others)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closing is not None:
                await asyncio.wait([writing], timeout=FLUSH_TIMEOUT)
                raise self._closing
            for task in done:
                task.result()
        except SlowConsumerError:
            raise SessionClosed(1008, SLOW_CLIENT) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.outbound.discard()  # frees megabytes that would stay until the next garbage collection

    async def _read(self, session: WireSession[M], transport: Transport) -> None:
        """Handle the client's messages one after the other, no faster than the engine processes them."""
        while True:
            await self._handle(session, await transport.receive())
            self.touch()
            while session.dialogue.backlogged:
                await asyncio.sleep(BACKLOG_POLL_INTERVAL)

    async def _follow(self, session: WireSession[M]) -> None:
        """Handle the dialogue's events one after the other. They end only if the engine ends the session."""
        async for event in session.dialogue.events():
            session.handle_event(event)
        self.close(1011, ENGINE_ENDED)

    async def _write(self, transport: Transport) -> None:
        """Send queued messages."""
        while (data := await self.outbound.get()) is not None:
            await transport.send(data)

    async def _watch_limits(self, session: WireSession[M]) -> None:
        """End a session that lasts too long or is idle."""
        while True:
            await asyncio.sleep(LIMIT_CHECK_INTERVAL)
            now = time.monotonic()
            if now > self.opened_at + self.limits.session_seconds:
                self._expire(session, f"The session has reached its limit of {self.limits.session_seconds:.0f} s.")
            elif self.active_at == self.opened_at and now > self.opened_at + self.limits.first_message_seconds:
                self._expire(session, f"No message came within {self.limits.first_message_seconds:.0f} s.")
            elif now > self.active_at + self.limits.idle_seconds:
                self._expire(session, f"There was no message for {self.limits.idle_seconds:.0f} s.")

    def _expire(self, session: WireSession[M], reason: str) -> None:
        session.handle_error(ProtocolError(reason, "session_expired"), None)
        self.close(1008, reason)

    async def _handle(self, session: WireSession[M], data: str | bytes) -> None:
        """Handle one message; report what is wrong with it."""
        message: M | None = None
        try:
            message = self.serializer.deserialize(data)
            await session.handle_message(message)
        except ProtocolError as error:
            session.handle_error(error, message)
        except UserError as error:
            session.handle_error(ProtocolError(str(error)), message)
        except (SlowConsumerError, ClientDisconnected):  # in some protocols a message says that the client leaves
            raise
        except Exception:  # a bug in the server must not cost the client its session
            log.exception("a message failed", extra={"fields": {"session": session.id}})
            failure = ProtocolError("The server failed to process this.", "server_error", kind="server_error")
            session.handle_error(failure, message)
