"""Sessions over WebSocket, for every wire protocol that uses it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from speechgpt2.duplex.protocol import Dialogue
from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError, error_response, warning_headers
from speechgpt2.server.auth import Principal
from speechgpt2.server.channel import CLIENT_DISCONNECTED, ClientDisconnected, WireSession
from speechgpt2.server.gateway import Gateway, WireProtocol
from speechgpt2.server.saved_sessions import SessionRecord
from speechgpt2.server.session_config import SessionConfig

log = logging.getLogger("sg2.server")
CLOSE_TIMEOUT = 1.0  # seconds


class WebSocketTransport:
    """A WebSocket connection that is accepted already. See `channel.Transport`."""

    def __init__(self, socket: WebSocket):
        self._socket = socket

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            ClientDisconnected: The client has gone.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientDisconnected(message.get("code", 1005))
        text = message.get("text")
        return text if text is not None else message["bytes"]

    async def send(self, data: str | bytes) -> None:
        """Send one message."""
        if isinstance(data, str):
            await self._socket.send_text(data)
        else:
            await self._socket.send_bytes(data)


class WebSocketProtocol(WireProtocol, ABC):
    """A wire protocol over WebSocket.

    Attributes:
        path: The route.
        subprotocol: The WebSocket subprotocol, echoed to clients that offer it.
        saves_sessions: Whether sessions can be saved, and resumed with `?session_id=`.
    """

    path: str
    subprotocol: str | None = None
    saves_sessions = False

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_websocket_route(self.path, self.connect)

    @abstractmethod
    def make_session(
        self, dialogue: Dialogue, config: SessionConfig, record: SessionRecord | None = None
    ) -> WireSession[Any]:
        """Make the session of a client, with a channel of its own. `record`: where it is saved (`saves_sessions`)."""

    async def connect(self, socket: WebSocket) -> None:
        """Run a session, or reject it before the upgrade."""
        query, record = socket.query_params, None
        try:
            principal = self.gateway.authenticate(socket)
            if self.saves_sessions and "session_id" in query:
                record = await self.gateway.resume(principal, query["session_id"])
            config = self.gateway.session_config(principal, query.get("intent") == "transcription", record)
            warnings = self.gateway.warnings_of(principal, config, query.get("model"), resumed=record is not None)
            with self.gateway.admission.admit(principal.key_id):
                if record is None and self.saves_sessions and not config.only_transcribes:
                    record = await asyncio.to_thread(self.gateway.saved.create, principal.key_id)
                await self._run(socket, principal, config, record, warning_headers(warnings))
        except ApiError as error:
            await reject(socket, error)
        except AdmissionError as error:
            await reject(socket, self.gateway.rejection(error))
        finally:
            if record is not None:
                record.release()

    async def _run(
        self,
        socket: WebSocket,
        principal: Principal,
        config: SessionConfig,
        record: SessionRecord | None,
        headers: dict[str, str],
    ) -> None:
        with self.gateway.open_dialogue(config, record) as dialogue:
            # Protocols whose sessions are not saved need not know of records.
            session = self.make_session(dialogue, config, *([] if record is None else [record]))
            with self.gateway.register(session):
                running = self._accept_and_run(socket, session, headers)
                code, reason = await self.gateway.run_session(session, principal, running)
        if reason != CLIENT_DISCONNECTED:
            await close_socket(socket, code, reason)

    async def _accept_and_run(self, socket: WebSocket, session: WireSession[Any], headers: dict[str, str]) -> None:
        offered = self.subprotocol in socket.scope["subprotocols"]
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await socket.accept(self.subprotocol if offered else None, raw_headers)
        await session.channel.run(session, WebSocketTransport(socket))


async def reject(socket: WebSocket, error: ApiError) -> None:
    """Answer with an HTTP error before the upgrade; behind a proxy that cannot, close right after the upgrade."""
    client = socket.client.host if socket.client else "unknown"
    log.warning("a session was refused", extra={"fields": {"client": client, "reason": str(error)}})
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(error_response(error))
        return
    await socket.accept()
    await close_socket(socket, 1013 if error.status in (429, 503) else 1008, str(error))


async def close_socket(socket: WebSocket, code: int, reason: str) -> None:
    """Send a close frame, if the client still reads."""
    try:
        await asyncio.wait_for(socket.close(code, reason[:100]), CLOSE_TIMEOUT)
    except (asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
        log.debug("the client had gone", extra={"fields": {"code": code}})
