"""The FastAPI application of the server.

GET  /                     the page            GET  /health /ready /metrics /page-config
GET  /docs /openapi.json   openapi.py
WS   /v1/realtime          POST /v1/realtime/client_secrets      realtime_websocket.py
POST /v1/realtime/calls    webrtc_calls.py
POST /v1/chat/completions, GET /v1/models, GET /v1/voices /v1/personas        rest.py
POST /v1/audio/speech      speech_api.py
POST /v1/audio/transcriptions                                    transcription_api.py
POST /v1/responses         responses_api.py
GET  /v1/sessions, GET and DELETE /v1/sessions/{id}              sessions_api.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from speechgpt2.duplex.protocol import Engine
from speechgpt2.server.access_log import AccessLog
from speechgpt2.server.api_errors import ApiError, handle_api_error, handle_failure, handle_http_error
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.gateway import DialogueFactory, Gateway
from speechgpt2.server.hosted_tools import HostedTools
from speechgpt2.server.metrics import CONTENT_TYPE
from speechgpt2.server.openapi import describe, to_html
from speechgpt2.server.protocols import PROTOCOLS
from speechgpt2.server.tracing import Tracing
from speechgpt2.style import table

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "": "index.html",
    "page.js": "page.js",
    "talks.js": "talks.js",
    "recorder.js": "recorder.js",
    "page.css": "page.css",
    "worklet.js": "worklet.js",
    "docs.css": "docs.css",
}
EXAMPLES = ("What is three plus five?", "What is the capital of France?", "Count to five.", "中国的首都是哪里？")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; frame-ancestors {}",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class App:
    """One server on one engine, which it closes at shutdown. `asgi` is what uvicorn serves.

    Args:
        config: The server's settings.
        engine: A started engine.
        make_dialogue: Makes the dialogue of a session.
        tools: The tools that the server runs; None: those of `config`.
        tracing: Traces requests and turns, and is closed at shutdown; None: nothing does.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        make_dialogue: DialogueFactory,
        tools: HostedTools | None = None,
        tracing: Tracing | None = None,
    ):
        self.config, self.engine = config, engine
        framing = " ".join(config.framing_origins) or "'none'"
        self.page_headers = {name: value.format(framing) for name, value in PAGE_HEADERS.items()}
        self.gateway = Gateway(config, engine, make_dialogue, tools or HostedTools(config), tracing)
        self.protocols = [protocol(self.gateway) for protocol in PROTOCOLS]
        self.asgi = FastAPI(
            title="speechgpt2", docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan
        )
        self._add_routes()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        for protocol in self.protocols:
            await protocol.open()
        pruning = asyncio.create_task(self.gateway.saved.prune())
        yield
        pruning.cancel()
        for protocol in self.protocols:
            await protocol.close()
        await asyncio.to_thread(self.engine.close)
        await asyncio.to_thread(self.gateway.saved.close)
        await asyncio.to_thread(self.gateway.tracing.close)

    def _add_routes(self) -> None:
        for protocol in self.protocols:
            self.asgi.include_router(protocol.router)
        self.asgi.add_api_route("/health", self.health)
        self.asgi.add_api_route("/ready", self.ready)
        self.asgi.add_api_route("/metrics", self.prometheus_metrics)
        self.asgi.add_api_route("/page-config", self.page_config)
        self.asgi.add_api_route("/openapi.json", self.openapi)
        self.asgi.add_api_route("/docs", self.docs)
        for path in PAGE_FILES:
            self.asgi.add_api_route(f"/{path}", self.page)
        self.asgi.add_exception_handler(ApiError, handle_api_error)  # type: ignore[arg-type]
        self.asgi.add_exception_handler(HTTPException, handle_http_error)  # type: ignore[arg-type]
        self.asgi.add_exception_handler(Exception, handle_failure)
        self.asgi.add_middleware(AccessLog, tracing=self.gateway.tracing)
        if self.config.allowed_origins:  # browsers ask before a page sends a request to another origin
            self.asgi.add_middleware(
                CORSMiddleware,
                allow_origins=self.config.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["Location", "Warning", "X-Request-Id"],
            )

    async def health(self) -> Response:
        """Liveness: whether the engine works. If not, restart the process."""
        if not self.engine.alive:
            return JSONResponse({"status": "the engine has failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Readiness: whether the server admits new sessions."""
        admission = self.gateway.admission
        free = admission.capacity - admission.active
        state = "full" if free <= 0 else "ready"
        if admission.draining:
            state = "draining"
        if not self.engine.alive:
            state = "failed"
        return JSONResponse({"status": state, "free_slots": max(0, free)}, 200 if state == "ready" else 503)

    async def prometheus_metrics(self) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(self.gateway.metrics.exposition(), media_type=CONTENT_TYPE)

    async def page_config(self) -> Response:
        """What the page offers, and with which speed and style a session begins."""
        gateway, output = self.gateway, self.gateway.default_session.audio.output
        personas = gateway.personas.choices
        offered: dict[str, Any] = {
            "voices": gateway.voices.choices,
            "personas": personas if gateway.personas.default else ["", *personas],
            "styles": ["", *table()],
            "examples": list(EXAMPLES) if self.config.model == "mini" else [],
        }
        defaults = {"speed": output.speed, "style": output.style}
        saved = {"saves_sessions": gateway.saved.store is not None, "keep_days": self.config.sessions.keep_days}
        identity = {"model": self.config.model, "needs_key": bool(self.config.api_keys)}
        return JSONResponse({**identity, **offered, "defaults": defaults, **saved})

    async def openapi(self) -> Response:
        """The description of the REST routes, for programs."""
        return JSONResponse(describe(self.asgi))

    async def docs(self) -> Response:
        """The description of the REST routes, for people."""
        return HTMLResponse(to_html(describe(self.asgi)), headers=self.page_headers)

    async def page(self, request: Request) -> Response:
        """The page's files."""
        return FileResponse(PAGE / PAGE_FILES[request.url.path.lstrip("/")], headers=self.page_headers)

    async def drain(self) -> None:
        """Stop admitting sessions, and let responses end."""
        await self.gateway.drain()
