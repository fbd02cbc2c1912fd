"""The access log: one line for each request and each WebSocket handshake, with an id that the client gets, too."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechgpt2.server.items import new_id
from speechgpt2.server.tracing import Tracing

log = logging.getLogger("sg2.access")
QUIET = ("/health", "/ready", "/metrics")  # asked for every few seconds
REQUEST_ID = re.compile(rb"[\w.-]{1,64}")


class AccessLog:
    """ASGI middleware. It keeps the header `X-Request-Id` of the client or of a proxy, or makes a new id.

    Args:
        app: What answers the requests.
        tracing: Traces them.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing):
        self.app, self.tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; trace it, and log it when it ends."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = (given if REQUEST_ID.fullmatch(given) else new_id("req").encode()).decode()
        if scope["path"] in QUIET:
            await self._log(scope, receive, send, request_id, {})
            return
        with self.tracing.request(scope, request_id) as result:
            await self._log(scope, receive, send, request_id, result)

    async def _log(self, scope: Scope, receive: Receive, send: Send, request_id: str, result: dict[str, Any]) -> None:
        """Pass a request on, and log it when it ends; its status is put into `result`."""
        began, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                status = message.get("status", 101)
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            result["status"] = status
            if scope["path"] not in QUIET or status >= 400:
                self._write(scope, status, time.monotonic() - began, request_id)

    def _write(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        client = scope.get("client") or ("unknown", 0)
        fields: dict[str, Any] = {"client": client[0], "method": scope.get("method", "WS"), "path": scope["path"]}
        fields |= {"status": status, "seconds": round(seconds, 3), "request": request_id}
        fields |= self.tracing.log_fields()
        log.log(logging.WARNING if status >= 500 else logging.INFO, "request", extra={"fields": fields})
