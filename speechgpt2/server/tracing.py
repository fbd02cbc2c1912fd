"""Tracing: what the server tells about its requests and turns. This module is the interface, and tracing that is off.

open_telemetry.py   where spans go: OTLP, the settings, the span of a request
turn_spans.py       the spans of a session's turns
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from speechgpt2 import extras
from speechgpt2.duplex.protocol import Dialogue, Session
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.types import ToolCall

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXTRA = "telemetry"

log = logging.getLogger("sg2.server")


class SessionTrace(Protocol):
    """What the parts of a session report besides the calls and events of its dialogue."""

    def name_session(self, id: str) -> None:
        """The session has the id `id`."""
        ...

    def tool_finished(self, call: ToolCall) -> None:
        """A tool that the server runs has a result, or was cancelled."""
        ...


_current: ContextVar[SessionTrace | None] = ContextVar("session_trace", default=None)  # of the session of this task


def follow(trace: SessionTrace) -> None:
    """Let this task, and those that it starts, report to `trace`."""
    _current.set(trace)


def name_session(id: str) -> None:
    """See `SessionTrace`; does nothing without tracing."""
    if (trace := _current.get()) is not None:
        trace.name_session(id)


def tool_finished(call: ToolCall) -> None:
    """See `SessionTrace`; does nothing without tracing."""
    if (trace := _current.get()) is not None:
        trace.tool_finished(call)


class Tracing:
    """Tracing that is off. `open_telemetry.OpenTelemetry` is on."""

    @contextmanager
    def request(self, scope: Mapping[str, Any], request_id: str) -> Iterator[dict[str, Any]]:
        """Trace a request, or a whole WebSocket connection, while the block runs.

        Args:
            scope: Its ASGI scope.
            request_id: Its id in the access log.

        Yields:
            A dictionary in which the block puts the HTTP `status`.
        """
        yield {}

    def log_fields(self) -> dict[str, str]:
        """Return the fields of a line in the log that name the current trace."""
        return {}

    def dialogue(self, dialogue: Dialogue) -> Dialogue:
        """Return a dialogue whose turns are traced."""
        return dialogue

    def session(self, session: Session) -> Session:
        """Return a session of an engine whose replies are traced."""
        return session

    def close(self) -> None:
        """Send the last spans. May block for seconds."""


def start(otlp: str | None, environ: Mapping[str, str], model: str) -> Tracing:
    """Start tracing if the settings or OpenTelemetry's environment variables ask for it.

    Args:
        otlp: Address of a collector for OTLP over HTTP, such as http://localhost:4318.
        environ: Environment variables.
        model: Name of the served model, an attribute of every turn.

    Raises:
        UserError: `otlp` is not an address, or a variable contradicts it.
        MissingDependency: `otlp` is given and the extra is not installed.
    """
    variable = next((name for name in ENDPOINTS if environ.get(name)), None)
    if otlp is None and (variable is None or off(environ)):
        return Tracing()
    if otlp is not None:
        check(otlp, environ)
    try:
        module = extras.require("speechgpt2.server.open_telemetry", EXTRA)
    except MissingDependency as error:
        text = f"OpenTelemetry needs more packages: pip install 'speechgpt2[{EXTRA}]'"
        if otlp is not None:
            raise MissingDependency(text) from None
        log.warning(f"{variable} has no effect: {text}", extra={"fields": {"reason": str(error)}})
        return Tracing()
    for name in PROTOCOLS:
        if environ.get(name, "http/protobuf") != "http/protobuf":
            log.warning(f"{name}={environ[name]} has no effect: spans are sent by http/protobuf")
    tracing: Tracing = module.OpenTelemetry(module.exporter(otlp), model)
    return tracing


def off(environ: Mapping[str, str]) -> bool:
    """Whether variables turn traces off that another variable asks for."""
    wanted = environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if wanted not in ("otlp", "none"):
        log.warning(f"OTEL_TRACES_EXPORTER={wanted} has no effect: spans are sent by otlp, or by none")
    return wanted == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"


def check(otlp: str, environ: Mapping[str, str]) -> None:
    """Check an address that the user has given.

    Raises:
        UserError: It is not an http(s) address, or a variable turns tracing off.
    """
    if not otlp.startswith(("http://", "https://")):
        raise UserError(f"otlp must be the address of a collector, such as http://localhost:4318, not {otlp!r}")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        raise UserError("OTEL_SDK_DISABLED=true turns tracing off: unset it, or leave --otlp out")
