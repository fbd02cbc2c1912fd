"""OpenAI Realtime over WebSocket, and client secrets for browsers.

WS   /v1/realtime?model=…
POST /v1/realtime/client_secrets
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from speechgpt2.server.admission import AdmissionError
from speechgpt2.server.api_errors import ApiError, error_response, read_json
from speechgpt2.server.auth import DEFAULT_TTL, SUBPROTOCOL, TTL_RANGE, Principal
from speechgpt2.server.channel import CLIENT_DISCONNECTED, Channel, ClientDisconnected
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.messages import RealtimeSerializer
from speechgpt2.server.realtime import RealtimeSession
from speechgpt2.server.session_config import SessionConfig

log = logging.getLogger("sg2.server")
CLOSE_TIMEOUT = 1.0  # seconds
MAX_REQUEST = 64 * 1024  # bytes of a request for a client secret


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


class RealtimeWebSocket:
    """The routes of Realtime sessions over WebSocket."""

    def __init__(self, gateway: Gateway):
        self.gateway = gateway
        self.router = APIRouter()
        self.router.add_api_websocket_route("/v1/realtime", self.connect)
        self.router.add_api_route("/v1/realtime/client_secrets", self.create_client_secret, methods=["POST"])

    async def connect(self, socket: WebSocket) -> None:
        """Run a session, or reject it before the upgrade."""
        try:
            principal = self.gateway.authenticate(socket)
            config = self.gateway.session_config(principal, socket.query_params.get("model"))
            with self.gateway.admission.admit(principal.key_id):
                await self._run(socket, principal, config)
        except ApiError as error:
            await _reject(socket, error)
        except AdmissionError as error:
            await _reject(socket, self.gateway.rejection(error))

    async def _run(self, socket: WebSocket, principal: Principal, config: SessionConfig) -> None:
        server = self.gateway.config
        with self.gateway.open_dialogue(config) as dialogue:
            channel = Channel(RealtimeSerializer(), server.limits)
            session = RealtimeSession(
                dialogue, self.gateway.engine, config, channel, self.gateway.metrics, server.log_transcripts
            )
            with self.gateway.register(session):
                code, reason = await self.gateway.run_session(session, principal, _accept_and_run(socket, session))
        if reason != CLIENT_DISCONNECTED:
            await _close(socket, code, reason)

    async def create_client_secret(self, request: Request) -> Response:
        """Create a short-lived secret that a browser may use instead of an API key."""
        principal = self.gateway.authenticate(request)
        body = await read_json(request, MAX_REQUEST)
        seconds = (body.get("expires_after") or {}).get("seconds", DEFAULT_TTL)
        if not isinstance(seconds, int) or seconds not in TTL_RANGE:
            message = f"expires_after.seconds must be {TTL_RANGE.start}…{TTL_RANGE.stop - 1}."
            raise ApiError(400, message, "invalid_value", "expires_after.seconds")
        settings = body.get("session") or {}
        config = self.gateway.session_config(Principal(principal.key_id, settings), None)
        try:
            value, expires_at = self.gateway.authenticator.create_client_secret(principal, settings, seconds)
        except ValueError as error:
            raise ApiError(400, f"session: {error}.", "invalid_value", "session") from None
        session = {"id": "sess_unopened", "object": "realtime.session", "expires_at": 0, **config.model_dump()}
        return JSONResponse({"value": value, "expires_at": expires_at, "session": session})

    async def close(self) -> None:
        """End nothing: uvicorn closes the sockets."""


async def _accept_and_run(socket: WebSocket, session: RealtimeSession) -> None:
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    await session.channel.run(session, WebSocketTransport(socket))


async def _reject(socket: WebSocket, error: ApiError) -> None:
    """Answer with an HTTP error before the upgrade; behind a proxy that cannot, close right after the upgrade."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(error_response(error))
        return
    await socket.accept()
    await _close(socket, 1013 if error.status in (429, 503) else 1008, str(error))


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Send a close frame, if the client still reads."""
    try:
        await asyncio.wait_for(socket.close(code, reason[:100]), CLOSE_TIMEOUT)
    except (asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
        log.debug("the client had gone", extra={"fields": {"code": code}})
