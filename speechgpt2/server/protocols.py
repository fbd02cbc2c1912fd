"""The wire protocols of the server. A new protocol is one class, registered in `PROTOCOLS`."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter

from speechgpt2.server.gateway import Gateway
from speechgpt2.server.rest import RestApi
from speechgpt2.server.webrtc_calls import RealtimeCalls
from speechgpt2.server.websocket import RealtimeWebSocket


class WireProtocol(Protocol):
    """The routes of one wire protocol. A protocol with sessions runs each in a `channel.Channel`.

    Attributes:
        router: Its HTTP and WebSocket routes.
    """

    router: APIRouter

    def __init__(self, gateway: Gateway): ...

    async def close(self) -> None:
        """End all sessions that do not end with the server's sockets."""
        ...


PROTOCOLS: tuple[type[WireProtocol], ...] = (RealtimeWebSocket, RealtimeCalls, RestApi)
