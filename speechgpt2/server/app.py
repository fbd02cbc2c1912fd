"""The application: who may come in, and which door leads where.

GET  /                     the page            GET  /health /ready /metrics
WS   /v1/realtime          realtime.py         POST /v1/realtime/client_secrets
POST /v1/realtime/calls    calls.py, webrtc.py
POST /v1/chat/completions · /v1/audio/speech · /v1/audio/transcriptions, GET /v1/models      rest.py
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.websockets import WebSocketDisconnect

from speechgpt2.duplex.protocol import DialogueSettings, Engine, EngineFull, SessionSettings
from speechgpt2.duplex.protocol import Session as EngineSession
from speechgpt2.server import settings
from speechgpt2.server.auth import DEFAULT_TTL, PROTOCOL, TTL, Caller, Doorkeeper
from speechgpt2.server.calls import Calls
from speechgpt2.server.channel import Close, Left
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.limits import Admission, Refused
from speechgpt2.server.metrics import CONTENT_TYPE, Metrics
from speechgpt2.server.problems import Problem, answer_problem, as_response, read_json
from speechgpt2.server.realtime import Connection
from speechgpt2.server.rest import Rest
from speechgpt2.server.wire import Session, WireError

log = logging.getLogger("sg2.server")
PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"": "index.html", "page.js": "page.js", "page.css": "page.css", "worklet.js": "worklet.js"}
PAGE_RULES = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class App:
    """One server over one engine, which it closes in the end. `asgi` is what uvicorn serves.

    `dialogue` makes of a session and its `DialogueSettings` one that hears when turns end.
    """

    def __init__(self, config: ServerConfig, engine: Engine, dialogue: Callable[[Any, DialogueSettings], Any]):
        self.config, self.engine, self.dialogue = config, engine, dialogue
        self.base = Session(model=config.model)  # what a session begins with
        self.door = Doorkeeper(config.api_keys, config.origins)
        self.admission = Admission(config.slots, config.limits.per_key)
        self.metrics = Metrics(config.slots)
        self.connections: set[Connection] = set()
        self.calls = Calls(self)
        self.metrics.active.set_function(lambda: self.admission.taken)
        engine.add_step_observer(self.metrics.steps.observe)
        self.asgi = FastAPI(title="speechgpt2", docs_url=None, redoc_url=None, lifespan=self._lifespan)
        self._routes()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        await self.calls.close()
        await asyncio.to_thread(self.engine.close)

    def _routes(self) -> None:
        app = self.asgi
        app.add_api_websocket_route("/v1/realtime", self.realtime)
        app.add_api_route("/v1/realtime/client_secrets", self.client_secret, methods=["POST"])
        app.add_api_route("/health", self.health)
        app.add_api_route("/ready", self.ready)
        app.add_api_route("/metrics", self.prometheus)
        app.add_api_route("/offers", self.offers)
        for path in PAGE_FILES:
            app.add_api_route(f"/{path}", self.page)
        app.include_router(self.calls.router)
        app.include_router(Rest(self).router)
        app.add_exception_handler(Problem, answer_problem)  # type: ignore[arg-type]
        if self.config.origins:  # a browser asks whether a page may send what `enter` then lets in
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self.config.origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["Location"],
            )

    # doors

    def enter(self, request: Request | WebSocket) -> Caller:
        """Who asks. Errors: `Problem` for a wrong key or a page from elsewhere."""
        headers = request.headers
        if not self.door.welcomes(headers.get("origin"), headers.get("host")):
            self.metrics.rejections.labels("origin").inc()
            raise Problem(403, "Pages from this origin may not connect.", "invalid_origin")
        offered = request.scope.get("subprotocols", [])
        caller = self.door.caller(headers.get("authorization"), offered)
        if caller is None:
            self.metrics.rejections.labels("key").inc()
            raise Problem(401, "Incorrect or missing API key.", "invalid_api_key")
        return caller

    def refusal(self, refused: Refused) -> Problem:
        """What someone is told for whom there is no place."""
        self.metrics.rejections.labels(refused.reason).inc()
        retry = {"Retry-After": str(self.config.limits.retry_seconds)}
        if refused.reason == "per_key":
            return Problem(429, str(refused), "rate_limit_exceeded", headers=retry)
        return Problem(503, str(refused), "server_overloaded", kind="server_error", headers=retry)

    async def realtime(self, socket: WebSocket) -> None:
        """A websocket asks for a session: it is refused before the upgrade, or let in."""
        try:
            caller = self.enter(socket)
            session = self.new_session(caller, socket.query_params.get("model"))
            with self.admission.place(caller.name):
                await self._talk(socket, caller, session)
        except Problem as problem:
            await _deny(socket, problem)
        except Refused as refused:
            await _deny(socket, self.refusal(refused))

    async def _talk(self, socket: WebSocket, caller: Caller, session: Session) -> None:
        with self.connected(session) as connection:
            code, reason = await self.attend(connection, caller, _converse(socket, connection))
        if reason != "client left":
            await _close(socket, code, reason)

    @contextmanager
    def connected(self, session: Session, kind: type[Connection] = Connection) -> Iterator[Connection]:
        """A session with a slot of its own, while the block runs. Errors: `Refused`."""
        talk = self.open(settings.of_session(session))
        dialogue = self.dialogue(talk, settings.of_dialogue(session))
        connection = kind(dialogue, self.engine, session, self.config.limits, self.metrics)
        connection.log_words = self.config.log_words
        self.connections.add(connection)
        try:
            yield connection
        finally:
            self.connections.discard(connection)
            dialogue.close()

    async def attend(self, connection: Connection, caller: Caller, talk: Awaitable[None]) -> tuple[int, str]:
        """Wait for the end of a session's `talk`, count and log it; returns the close code and the reason."""
        code, reason = 1000, ""
        try:
            await talk
        except Close as close:
            code, reason = close.code, close.reason
        except Left as left:
            code, reason = left.code, left.reason
        except WebSocketDisconnect as left:
            code, reason = left.code, "client left"
        except Exception:
            log.exception("session failed", extra={"fields": {"session": connection.id}})
            code, reason = 1011, "the server failed"
        self.metrics.closed.labels(str(code)).inc()
        told = {"caller": caller.name, "code": code, "reason": reason, **connection.summary()}
        log.info("session ended", extra={"fields": told})
        return code, reason

    def open(self, wanted: SessionSettings) -> EngineSession:
        """A session of the engine's. Errors: `Refused` if it has no slot after all."""
        try:
            return self.engine.open(wanted)
        except EngineFull:
            raise Refused("full") from None

    def new_session(self, caller: Caller, model: str | None) -> Session:
        """The settings that a caller begins with. Errors: `Problem` if its client secret holds bad ones."""
        try:
            session = self.base.updated(dict(caller.session))
        except WireError as error:
            raise Problem(400, str(error), error.code, error.param) from None
        return session.updated({"model": model} if model else {})

    async def client_secret(self, request: Request) -> Response:
        """A secret that a browser may use for a while instead of the key."""
        caller = self.enter(request)
        body = await read_json(request, 64 * 1024)
        seconds = (body.get("expires_after") or {}).get("seconds", DEFAULT_TTL)
        if not isinstance(seconds, int) or seconds not in TTL:
            words = f"expires_after.seconds must be {TTL.start}…{TTL.stop - 1}."
            raise Problem(400, words, "invalid_value", "expires_after.seconds")
        wanted = body.get("session") or {}
        session = self.new_session(Caller(caller.name, wanted), None)
        try:
            value, ends = self.door.mint(caller, wanted, seconds)
        except ValueError as error:
            raise Problem(400, f"session: {error}.", "invalid_value", "session") from None
        shown = {"id": "sess_unborn", "object": "realtime.session", "expires_at": 0, **session.model_dump()}
        return JSONResponse({"value": value, "expires_at": ends, "session": shown})

    # what operators and pages ask

    async def health(self) -> Response:
        """Whether the process is well; without its engine it should be started again."""
        if not self.engine.alive:
            return JSONResponse({"status": "the engine has failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """Whether new sessions should be sent here."""
        open_places = self.admission.places - self.admission.taken
        state = "draining" if self.admission.draining else "full" if open_places <= 0 else "ready"
        state = state if self.engine.alive else "failed"
        return JSONResponse({"status": state, "free_slots": max(0, open_places)}, 200 if state == "ready" else 503)

    async def prometheus(self) -> Response:
        """Metrics."""
        return Response(self.metrics.exposition(), media_type=CONTENT_TYPE)

    async def offers(self) -> Response:
        """What the page may let people choose."""
        choices: dict[str, list[str]] = {
            "voices": [],
            "styles": [],
        }  # this architecture's voice is the one it was trained to have
        return JSONResponse({"model": self.config.model, "needs_key": bool(self.config.api_keys), **choices})

    async def page(self, request: Request) -> Response:
        """The page's files."""
        return FileResponse(PAGE / PAGE_FILES[request.url.path.lstrip("/")], headers=PAGE_RULES)

    async def drain(self) -> None:
        """Take no one in, let answers end, and wait until all have left, but not for ever."""
        self.admission.draining = True
        for connection in list(self.connections):
            connection.drain()
        end = time.monotonic() + self.config.limits.drain_seconds
        while self.admission.taken and time.monotonic() < end:
            await asyncio.sleep(0.05)


async def _converse(socket: WebSocket, connection: Connection) -> None:
    """A session over a websocket."""
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
    await connection.run(lambda: _receive(socket), socket.send_text)


async def _receive(socket: WebSocket) -> str | bytes:
    """The next message. Errors: `Left`."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise Left(message.get("code", 1005))
    text = message.get("text")
    return text if text is not None else message["bytes"]


async def _deny(socket: WebSocket, problem: Problem) -> None:
    """Refuse before the upgrade; what stands before us may not know how to, and then with a close code after it."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(as_response(problem))
        return
    await socket.accept()
    await _close(socket, 1013 if problem.status in (429, 503) else 1008, str(problem))


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Say goodbye, if the other side still listens."""
    try:
        await asyncio.wait_for(socket.close(code, reason[:100]), 1.0)
    except (asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
        log.debug("the peer was gone", extra={"fields": {"code": code}})
