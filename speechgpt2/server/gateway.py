"""Opening and closing of sessions for every wire protocol: authentication, admission, a slot of the engine, the log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import APIRouter, Request, WebSocket
from starlette.websockets import WebSocketDisconnect

from speechgpt2.duplex.protocol import Dialogue, DialogueSettings, Engine, EngineFull, Session, SessionSettings
from speechgpt2.errors import UserError
from speechgpt2.server.admission import Admission, AdmissionError
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.auth import Authenticator, Principal
from speechgpt2.server.channel import CLIENT_DISCONNECTED, ClientDisconnected, SessionClosed, WireSession
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.hosted_tools import HostedTools
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.personas import Personas
from speechgpt2.server.saved_sessions import SavedSessions, SessionRecord
from speechgpt2.server.schema import ProtocolError, validate
from speechgpt2.server.session_config import SessionConfig, ineffective_settings, other_model, unused_tools
from speechgpt2.server.settings import MAX_SEED, dialogue_settings, session_settings
from speechgpt2.server.tracing import Tracing, name_session
from speechgpt2.server.voices import Voices
from speechgpt2.sessions.entries import SavedSession

log = logging.getLogger("sg2.server")
KEEPS_SETTINGS = "the settings of the client secret have no effect: the resumed session keeps its own"
RESUMED_ELSEWHERE = "the session was resumed in another connection"
DRAIN_POLL_INTERVAL = 0.05  # seconds


class DialogueFactory(Protocol):
    """Makes a dialogue, which detects turns, on an engine's session: `duplex.dialogue.Dialogue`, from cli/serve.py."""

    def __call__(self, session: Session, settings: DialogueSettings, /) -> Dialogue:
        """Return a dialogue that owns `session`."""
        ...


class Gateway:
    """Opens sessions on an engine for the clients of all wire protocols.

    Args:
        config: The server's settings.
        engine: A started engine.
        make_dialogue: Makes the dialogue of a session.
        tools: The tools that the server runs.
        tracing: Traces turns; None: nothing does.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        make_dialogue: DialogueFactory,
        tools: HostedTools,
        tracing: Tracing | None = None,
    ):
        self.config, self.engine, self.make_dialogue, self.tools = config, engine, make_dialogue, tools
        self.tracing = tracing or Tracing()
        self.voices = Voices(engine.voices)
        self.personas = Personas(config.persona)
        output = {"speed": config.speed, "style": config.style}
        chosen = self.personas.expand({"persona": config.persona, "audio": {"output": output}}, "session")
        self.default_session = self.voices.resolve(SessionConfig(model=config.model).updated(chosen), "session")
        self.authenticator = Authenticator(
            config.api_keys, config.allowed_origins, hosts=(config.host, *config.allowed_hosts)
        )
        self.admission = Admission(config.slots, config.limits.sessions_per_key, lambda: engine.alive)
        self.metrics = Metrics(config.slots)
        self.metrics.slots_in_use.set_function(lambda: self.admission.active)
        self.sessions: set[WireSession[Any]] = set()
        self.saved = SavedSessions(config, engine)
        engine.add_step_observer(self.metrics.step_duration.observe)

    def authenticate(self, request: Request | WebSocket) -> Principal:
        """Identify the client.

        Raises:
            ApiError: The API key is wrong or missing (401), or the page's origin or the host name is not allowed (403).
        """
        self.check_address(request)
        return self.authenticate_key(request.headers.get("authorization"), request.scope.get("subprotocols", []))

    def check_address(self, request: Request | WebSocket) -> None:
        """Check the names by which a client, and a page in it, address the server.

        Raises:
            ApiError: One of them is not allowed (403).
        """
        headers = request.headers
        if not self.authenticator.allows_host(headers.get("host")):
            self.metrics.rejections.labels("invalid_host").inc()
            text = "This server is not addressed by that name: add it to allowed_hosts."
            raise ApiError(403, text, "invalid_host")
        if not self.authenticator.allows_origin(headers.get("origin"), headers.get("host")):
            self.metrics.rejections.labels("invalid_origin").inc()
            raise ApiError(403, "Pages from this origin may not connect.", "invalid_origin")

    def authenticate_key(self, authorization: str | None, subprotocols: Sequence[str] = ()) -> Principal:
        """Identify a client by its Authorization header or WebSocket subprotocols.

        Raises:
            ApiError: The API key is wrong or missing (401).
        """
        principal = self.authenticator.authenticate(authorization, subprotocols)
        if principal is None:
            self.metrics.rejections.labels("invalid_key").inc()
            raise ApiError(401, "Incorrect or missing API key.", "invalid_api_key")
        return principal

    def rejection(self, error: AdmissionError) -> ApiError:
        """Count a rejected session; returns the HTTP error for it."""
        self.metrics.rejections.labels(error.reason).inc()
        retry = {"Retry-After": str(self.config.limits.retry_seconds)}
        if error.reason == "per_key":
            return ApiError(429, str(error), "rate_limit_exceeded", headers=retry)
        return ApiError(503, str(error), "server_overloaded", kind="server_error", headers=retry)

    def session_config(
        self, principal: Principal, transcribes: bool = False, record: SessionRecord | None = None
    ) -> SessionConfig:
        """Return the settings with which a client's session starts.

        Args:
            principal: The client.
            transcribes: Whether the session only transcribes.
            record: The saved session to resume, with its own settings.

        Raises:
            ApiError: The client secret or the saved session holds invalid settings.
        """
        if record is not None and record.saved is not None:
            return saved_config(record.saved, self.config.model)
        try:
            config = self.voices.resolve(self.updated(self.default_session, dict(principal.session)), "session")
        except ProtocolError as error:
            raise ApiError(400, str(error), error.code, error.param) from None
        if config.seed is None:
            config = config.updated({"seed": secrets.randbelow(MAX_SEED)})
        return config.updated({"type": "transcription"}) if transcribes else config

    def updated(self, config: SessionConfig, changes: dict[str, Any]) -> SessionConfig:
        """Return a session's settings with a client's changes, the persona that they name included.

        Raises:
            ProtocolError: A field is invalid.
        """
        return config.updated(self.personas.expand(changes, "session"))

    def warnings_of(
        self, principal: Principal, config: SessionConfig, model: str | None, resumed: bool = False
    ) -> list[str]:
        """List the client's settings that are ignored.

        A resumed session keeps its saved settings, so the client's are all ignored.
        """
        if resumed:
            return [*([KEEPS_SETTINGS] if principal.session else []), *other_model(config.model, model)]
        voice = self.voices.warnings_for(principal.session, "session")
        ignored = ineffective_settings(config, principal.session) + unused_tools(self.engine, principal.session)
        return voice + ignored + other_model(config.model, model)

    def open_engine_session(self, settings: SessionSettings, record: SessionRecord | None = None) -> Session:
        """Lease a slot, for a session that may be saved.

        Raises:
            AdmissionError: The engine has no free slot.
            ApiError: The saved session cannot be resumed with this model.
        """
        try:
            if record is None:
                return self.engine.open(settings)
            session = self.engine.open(settings, record.saved, record)
        except EngineFull:
            raise AdmissionError("full") from None
        except UserError as error:
            if record is None or record.saved is None:
                raise
            raise ApiError(400, f"The session cannot be resumed: {error}.", "session_unusable", "session_id") from None
        record.leased = True
        return session

    async def resume(self, principal: Principal, id: str) -> SessionRecord:
        """Open a saved session of the client. A connection that still holds it is closed: it may be dead.

        Raises:
            ApiError: There is no such session, or it cannot be resumed.
        """
        if (record := self.saved.find_open(id, principal.key_id)) is not None:
            for session in self.sessions:
                if session.id == id:
                    session.channel.close(1008, RESUMED_ELSEWHERE)
            if not await asyncio.to_thread(record.wait_closed):
                raise ApiError(409, f"The session '{id}' is still in use.", "session_in_use", "session_id")
        return await asyncio.to_thread(self.saved.resume, id, principal.key_id)

    @contextmanager
    def open_dialogue(self, config: SessionConfig, record: SessionRecord | None = None) -> Iterator[Dialogue]:
        """Hold a slot with a dialogue on it while the block runs.

        Raises:
            AdmissionError: The engine has no free slot.
            ApiError: The saved session cannot be resumed with this model.
        """
        session = self.open_engine_session(session_settings(config), record)
        dialogue = self.tracing.dialogue(self.make_dialogue(session, dialogue_settings(config)))
        try:
            yield dialogue
        finally:
            dialogue.close()

    @contextmanager
    def register(self, session: WireSession[Any]) -> Iterator[None]:
        """Keep `session` among the open sessions while the block runs."""
        self.sessions.add(session)
        name_session(session.id)
        try:
            yield
        finally:
            self.sessions.discard(session)

    async def run_session(
        self, session: WireSession[Any], principal: Principal, running: Awaitable[None]
    ) -> tuple[int, str]:
        """Wait for the end of a session; count and log it.

        Args:
            session: The session.
            principal: Its client.
            running: Runs the session's channel to its end.

        Returns:
            The close code and the reason.
        """
        code, reason = 1000, ""
        try:
            await running
        except (SessionClosed, ClientDisconnected) as end:
            code, reason = end.code, end.reason
        except WebSocketDisconnect as end:
            code, reason = end.code, CLIENT_DISCONNECTED
        except Exception:
            log.exception("session failed", extra={"fields": {"session": session.id}})
            code, reason = 1011, "the server failed"
        self.metrics.sessions_closed.labels(str(code)).inc()
        fields = {"client": principal.key_id, "code": code, "reason": reason, **session.summary()}
        fields |= self.tracing.log_fields()
        log.info("session ended", extra={"fields": fields})
        return code, reason

    async def drain(self) -> None:
        """Admit no more sessions, let responses end, and wait for the sessions to close, within the drain limit."""
        self.admission.draining = True
        for session in list(self.sessions):
            session.drain()
        end = time.monotonic() + self.config.limits.drain_seconds
        while self.admission.active and time.monotonic() < end:
            await asyncio.sleep(DRAIN_POLL_INTERVAL)


def saved_config(saved: SavedSession, model: str) -> SessionConfig:
    """Return the settings that a saved session had on the wire.

    Raises:
        ApiError: They are not valid, as those of another release may be.
    """
    try:
        return validate(SessionConfig, {**(saved.wire_settings or {}), "model": model})
    except ProtocolError as error:
        text = f"The session cannot be resumed: its settings are not valid ({error})."
        raise ApiError(400, text, "session_unusable", "session_id") from None


class WireProtocol:
    """Base class of wire protocols. A protocol with sessions runs each in a `channel.Channel`.

    Args:
        gateway: Opens the sessions.

    Attributes:
        router: The protocol's HTTP and WebSocket routes.
    """

    def __init__(self, gateway: Gateway):
        self.gateway, self.router = gateway, APIRouter()

    async def open(self) -> None:
        """Start what the protocol needs besides its routes."""

    async def close(self) -> None:
        """End the sessions that do not end with the server's sockets."""
