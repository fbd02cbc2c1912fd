"""OpenAI Realtime over WebSocket, and client secrets for browsers.

WS   /v1/realtime?model=…&session_id=…      the latter resumes a saved session
POST /v1/realtime/client_secrets
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from speechgpt2.duplex.protocol import Dialogue
from speechgpt2.server.api_errors import ApiError, read_json, validate_request, warning_headers
from speechgpt2.server.auth import DEFAULT_TTL, SUBPROTOCOL, TTL_RANGE, Principal
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.messages import RealtimeSerializer
from speechgpt2.server.realtime import RealtimeSession, make_session
from speechgpt2.server.saved_sessions import SessionRecord
from speechgpt2.server.schema import WireModel, ineffective
from speechgpt2.server.session_config import SessionConfig, ineffective_settings, unused_tools
from speechgpt2.server.websocket import WebSocketProtocol

MAX_REQUEST = 64 * 1024  # bytes of a request for a client secret


class ExpiresAfter(WireModel):
    """How long a client secret is valid."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=DEFAULT_TTL, ge=TTL_RANGE.start, lt=TTL_RANGE.stop)


class ClientSecretRequest(WireModel):
    """A request for a client secret, with settings of the sessions that are opened with it."""

    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = Field(default_factory=dict)


class RealtimeWebSocket(WebSocketProtocol):
    """The routes of Realtime sessions over WebSocket."""

    path = "/v1/realtime"
    subprotocol = SUBPROTOCOL
    saves_sessions = True

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/realtime/client_secrets", self.create_client_secret, methods=["POST"])

    def make_session(
        self, dialogue: Dialogue, config: SessionConfig, record: SessionRecord | None = None
    ) -> RealtimeSession:
        """Make a Realtime session. See `WebSocketProtocol`."""
        return make_session(RealtimeSession, self.gateway, RealtimeSerializer(), dialogue, config, record)

    async def create_client_secret(self, request: Request) -> Response:
        """Create a short-lived secret that a browser may use instead of an API key."""
        principal = self.gateway.authenticate(request)
        if principal.by_secret:
            raise ApiError(
                403, "A client secret cannot create another one: use an API key.", "insufficient_permissions"
            )
        body = await read_json(request, MAX_REQUEST)
        secret: ClientSecretRequest = validate_request(ClientSecretRequest, body)
        seconds, settings = secret.expires_after.seconds, secret.session
        config = self.gateway.session_config(Principal(principal.key_id, settings))
        voice = self.gateway.voices.warnings_for(settings, "session")
        ignored = [*ineffective(secret, body), *ineffective_settings(config, settings)]
        headers = warning_headers([*ignored, *voice, *unused_tools(self.gateway.engine, settings)])
        try:
            value, expires_at = self.gateway.authenticator.create_client_secret(principal, settings, seconds)
        except ValueError as error:
            raise ApiError(400, f"session: {error}.", "invalid_value", "session") from None
        session = {"id": "sess_unopened", "object": "realtime.session", "expires_at": 0, **config.model_dump()}
        return JSONResponse({"value": value, "expires_at": expires_at, "session": session}, headers=headers)
