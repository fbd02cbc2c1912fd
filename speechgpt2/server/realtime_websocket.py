"""OpenAI Realtime over WebSocket, and client secrets for browsers.

WS   /v1/realtime?model=…
POST /v1/realtime/client_secrets
"""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from speechgpt2.duplex.protocol import Dialogue
from speechgpt2.server.api_errors import ApiError, read_json
from speechgpt2.server.auth import DEFAULT_TTL, SUBPROTOCOL, TTL_RANGE, Principal
from speechgpt2.server.channel import Channel
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.messages import RealtimeSerializer
from speechgpt2.server.realtime import RealtimeSession
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.websocket import WebSocketProtocol

MAX_REQUEST = 64 * 1024  # bytes of a request for a client secret


class RealtimeWebSocket(WebSocketProtocol):
    """The routes of Realtime sessions over WebSocket."""

    path = "/v1/realtime"
    subprotocol = SUBPROTOCOL

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/realtime/client_secrets", self.create_client_secret, methods=["POST"])

    def make_session(self, dialogue: Dialogue, config: SessionConfig) -> RealtimeSession:
        """Make a Realtime session. See `WebSocketProtocol`."""
        channel = Channel(RealtimeSerializer(), self.gateway.config.limits)
        log_transcripts = self.gateway.config.log_transcripts
        return RealtimeSession(dialogue, self.gateway.engine, config, channel, self.gateway.metrics, log_transcripts)

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
