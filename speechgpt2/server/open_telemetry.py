"""Tracing with OpenTelemetry: where spans go, and the span of a request. Imports the extra `telemetry`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from speechgpt2.duplex.protocol import Dialogue, Session
from speechgpt2.server import tracing
from speechgpt2.server.turn_spans import TracedDialogue, TracedSession, TurnSpans

NAME = "speechgpt2"
PATH = "/v1/traces"  # of OTLP over HTTP


class OpenTelemetry(tracing.Tracing):
    """Sends spans to a collector.

    Args:
        processor: Takes the spans that have ended.
        model: Name of the served model.
    """

    def __init__(self, processor: SpanProcessor, model: str):
        self._provider = TracerProvider(resource=resource())
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(NAME, version(NAME))
        self._attributes = {"gen_ai.request.model": model}

    @contextmanager
    def request(self, scope: Mapping[str, Any], request_id: str) -> Iterator[dict[str, Any]]:
        """Trace a request. A client's `traceparent` makes it a part of the client's trace."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope.get("method", "GET")  # a WebSocket begins with GET
        attributes = {"http.request.method": method, "url.path": scope["path"], "sg2.request.id": request_id}
        if scope.get("client"):
            attributes["client.address"] = scope["client"][0]
        parent, result = propagate.extract(headers), dict[str, Any]()
        with self._tracer.start_as_current_span(method, parent, SpanKind.SERVER, attributes) as span:
            try:
                yield result
            finally:
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                status = result.get("status", 0)
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    def log_fields(self) -> dict[str, str]:
        """Return the id of the current trace. See `Tracing`."""
        context = trace.get_current_span().get_span_context()
        return {"trace": trace.format_trace_id(context.trace_id)} if context.is_valid else {}

    def dialogue(self, dialogue: Dialogue) -> Dialogue:
        """Return a dialogue whose turns are traced. See `Tracing`."""
        return cast(Dialogue, TracedDialogue(dialogue, self._spans(plays=True)))

    def session(self, session: Session) -> Session:
        """Return a session whose replies are traced. See `Tracing`."""
        return cast(Session, TracedSession(session, self._spans(plays=False)))

    def _spans(self, plays: bool) -> TurnSpans:
        spans = TurnSpans(self._tracer, self._attributes, plays)
        tracing.follow(spans)
        return spans

    def close(self) -> None:
        """Send the last spans. See `Tracing`."""
        self._provider.shutdown()


def exporter(otlp: str | None) -> SpanProcessor:
    """Return what sends spans to a collector, in batches on a thread of its own.

    Args:
        otlp: Address of the collector; None: that of the environment variables, which set everything else, too.
    """
    return BatchSpanProcessor(OTLPSpanExporter(endpoint(otlp)))


def endpoint(otlp: str | None) -> str | None:
    """Return the URL that takes spans: the collector's address with OTLP's path, which may be there already."""
    return None if otlp is None else otlp.rstrip("/").removesuffix(PATH) + PATH


def resource() -> Resource:
    """Return what is known about this server. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` take precedence."""
    given = Resource.create()
    own: dict[str, Any] = {SERVICE_VERSION: version(NAME)}
    if str(given.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        return given.merge(Resource({**own, SERVICE_NAME: NAME}))
    return Resource(own).merge(given)
