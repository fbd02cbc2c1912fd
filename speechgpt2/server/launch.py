"""The process: uvicorn with two habits changed. On SIGTERM answers are finished before sockets close, and a socket
whose reader has stalled is let go instead of being kept for as long as its peer's kernel answers.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from asyncio import BaseTransport, Task
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from speechgpt2.errors import UserError
from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig

COLLECT_EVERY = 10  # seconds between collections of garbage
SWITCH_EVERY = 1e-4  # seconds that the engine's thread waits for the loop's, a thousand times a step; Python's are 5 ms
UNSEEN = 128 * 1024  # bytes that the kernel may hold of what is sent: 2 s of PCM16 in base64
FAREWELL = 2.0  # seconds for the last bytes to leave


class Socket(WebSocketsSansIOProtocol):
    """A websocket that shows a slow reader early, and ends for certain."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Bound what is sent but not yet received, which nobody here can see."""
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSEEN)

    def data_received(self, data: bytes) -> None:
        """What follows a broken message is read and dropped."""
        if self.conn.parser_exc is None:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """A message is broken, or too large: say so and let the rest come, or a reset would overtake the word."""
        sent = self.conn.close_sent
        assert sent is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(FAREWELL, self.transport.abort)

    def on_task_complete(self, task: Task[None]) -> None:
        """The session is over: closing waits for bytes to leave, but not for ever."""
        super().on_task_complete(task)
        self.loop.call_later(FAREWELL, self.transport.abort)


class Server(uvicorn.Server):
    """Drains before it stops: a first signal lets answers finish, a second one does not."""

    def __init__(self, config: uvicorn.Config, app: App):
        super().__init__(config)
        self.app = app
        self._draining: Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._draining is None and self.started:
            self.app.admission.draining = True  # at once, not when the loop comes round
            self._draining = asyncio.get_running_loop().create_task(self._drain(sig, frame))
        else:
            super().handle_exit(sig, frame)

    async def _drain(self, sig: int, frame: FrameType | None) -> None:
        await self.app.drain()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, for people and for programs that asked for port 0."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {self.app.config.model} at http://{shown}:{port}", flush=True)


def check_free(host: str, port: int) -> None:
    """Errors: `UserError` unless the address can be listened on, found out before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def settle() -> None:
    """All is loaded, and this process does nothing but serve from now on: let threads take turns quickly, and what is
    there be looked at no more in each `collect`.
    """
    sys.setswitchinterval(SWITCH_EVERY)
    gc.collect()
    gc.freeze()


async def collect() -> None:
    """What sessions leave behind in cycles, which would otherwise wait for as much again as the server began with; to
    be called every `COLLECT_EVERY` seconds.
    """
    gc.collect()


def run(app: App) -> None:
    """Serve until a signal comes."""
    settle()
    Server(uvicorn_config(app, app.config), app).run()


def uvicorn_config(app: App, config: ServerConfig) -> uvicorn.Config:
    """uvicorn's settings for these of ours."""
    settings: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "loop": "asyncio",  # also where uvloop happens to be installed: `Socket` was tried with this one
        "ws": Socket,
        "callback_notify": collect,
        "timeout_notify": COLLECT_EVERY,
        "ws_max_size": config.limits.message_bytes + 1024,  # beyond it the socket is closed with 1009
        "ws_per_message_deflate": False,  # sound in base64 does not shrink enough for what it costs
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Config(app.asgi, **settings)
