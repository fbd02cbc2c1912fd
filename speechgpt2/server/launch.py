"""The server process: uvicorn with two changes.

On SIGTERM, responses end before sockets close. A socket whose client does not read is closed, even while the client's
kernel still acknowledges packets.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from asyncio import BaseTransport, Task
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from speechgpt2.errors import UserError
from speechgpt2.server.app import App
from speechgpt2.server.config import LimitsConfig, ServerConfig

log = logging.getLogger("sg2.server")
MAX_HEADER_BYTES = 64 * 1024
RESERVED_FILES = 64  # of the process: models, logs, the codec's process
GC_INTERVAL = 10  # seconds between garbage collections, and checks of the engine
SWITCH_INTERVAL = 1e-4  # seconds until a waiting thread gets the GIL; Python's default of 5 ms would delay the engine
SEND_BUFFER = 128 * 1024  # bytes that the kernel may buffer: 2 s of PCM16 in base64
CLOSE_TIMEOUT = 2.0  # seconds for the last bytes to leave


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket connection, which also detects slow clients early and always closes its socket."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Limit the kernel's send buffer, whose content the outbound queue does not count."""
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; drop those that follow an invalid frame."""
        if self.conn.parser_exc is None:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """Send a close frame for an invalid or too large message.

        The socket stays open for a while: closing it with unread data would reset the connection, and the client
        would not get the close frame.
        """
        sent = self.conn.close_sent
        assert sent is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def on_task_complete(self, task: Task[None]) -> None:
        """Abort the connection if its last bytes do not leave in time."""
        super().on_task_complete(task)
        self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)


class HttpConnection(HttpToolsProtocol):
    """uvicorn's HTTP connection with limits: how many there are, and how long and how large the headers may be.

    Without them, clients that connect and send nothing keep all of the process' sockets.
    """

    limits = LimitsConfig()  # replaced in a subclass, as uvicorn wants a class

    def connection_made(self, transport: BaseTransport) -> None:  # type: ignore[override]
        """Accept a connection, or close it if there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = self.loop.call_later(self.limits.header_seconds, self._drop)
        if len(self.connections) > max_connections(self.limits):
            self._drop()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; drop a connection whose headers do not end."""
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES + len(data):
                self._drop()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Wait for the headers of a request."""
        super().on_message_begin()
        self._header_bytes = 0
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_seconds, self._drop)

    def on_headers_complete(self) -> None:
        """Stop waiting for headers."""
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for headers."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _drop(self) -> None:
        self._stop_timer()
        self.transport.abort()


def max_connections(limits: LimitsConfig) -> int:
    """Return how many connections may be open: fewer than the process may have files, some of which it needs itself."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return limits.connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limits.connections if files < 0 else min(limits.connections, max(files // 2, files - RESERVED_FILES))


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on the first signal and stops on the second."""

    def __init__(self, config: uvicorn.Config, app: App):
        super().__init__(config)
        self.app = app
        self.failed = False
        self._draining: Task[None] | None = None
        config.callback_notify = self.tick

    async def tick(self) -> None:
        """Do what is due every `GC_INTERVAL` seconds."""
        await collect_garbage()
        await self.watch()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain, or stop at once."""
        if self._draining is None and self.started:
            self.app.gateway.admission.draining = True  # at once, before the task runs
            self._draining = asyncio.get_running_loop().create_task(self._drain(sig, frame))
        else:
            super().handle_exit(sig, frame)

    async def _drain(self, sig: int, frame: FrameType | None) -> None:
        await self.app.drain()
        super().handle_exit(sig, frame)

    async def watch(self) -> None:
        """Stop the server when its engine has failed, so that a supervisor can start it again."""
        if not self.app.engine.alive and self.started and not self.should_exit:
            log.critical("the engine has failed, so the server stops")
            self.failed = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Print the address, which also shows the port that was chosen for port 0."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host, scheme = f"[{host}]" if ":" in host else host, "https" if self.app.config.ssl_certfile else "http"
        print(f"serving {self.app.config.model} at {scheme}://{host}:{port}", flush=True)


def check_free(host: str, port: int) -> None:
    """Check that an address is free, before a model is loaded.

    Raises:
        UserError: It is in use, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def tune_process() -> None:
    """Prepare the process for serving: fast thread switches, and no garbage collection of loaded objects."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()


async def collect_garbage() -> None:
    """Free what ended sessions leave in reference cycles. Call it every `GC_INTERVAL` seconds.

    Python itself collects only after as many new objects as the frozen ones, which is too late here.
    """
    gc.collect()


def run(app: App) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: The engine has failed.
    """
    tune_process()
    server = DrainingServer(uvicorn_config(app, app.config), app)
    server.run()
    if server.failed:
        raise UserError("the engine has failed, and the log says why; start the server again")


def uvicorn_config(app: App, config: ServerConfig) -> uvicorn.Config:
    """Return uvicorn's settings."""
    settings: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "loop": "asyncio",  # not uvloop, with which `WebSocketConnection` is not tested
        "http": type("LimitedHttpConnection", (HttpConnection,), {"limits": config.limits}),
        "ws": WebSocketConnection,
        "timeout_notify": GC_INTERVAL,
        "ws_max_size": config.limits.message_bytes + 1024,  # a larger message closes the socket with 1009
        "ws_per_message_deflate": False,  # base64 audio hardly shrinks
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Config(app.asgi, **settings)
