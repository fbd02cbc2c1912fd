"""Traces of requests and turns: the spans in memory, and on the wire of a collector that speaks OTLP over HTTP."""

import contextlib
import itertools
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.server import tracing
from speechgpt2.server.config import ToolsConfig
from speechgpt2.types import AudioDelta, Interrupted, ReplyDone, SpeechStarted, SpeechStopped, TextDelta, ToolCall, Turn
from tests import needs
from tests.server.conftest import Served, open_client, serving, silence, voice

sdk = needs.module("opentelemetry.sdk.trace.export", "telemetry")
needs.module("opentelemetry.exporter.otlp.proto.http.trace_exporter", "telemetry")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from speechgpt2.duplex.protocol import ReplyStarted, UserTurnCommitted
from speechgpt2.server.open_telemetry import OpenTelemetry, endpoint, resource
from speechgpt2.server.turn_spans import TurnSpans

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def fetch(url, body=None, headers=None):
    """The status of a request; with a JSON body it is a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


class Traced(Served):
    """A server, and the spans that it has ended."""

    def __init__(self, served, exporter):
        super().__init__(served.app, served.server, served.port)
        self.exporter = exporter

    def spans(self, name, count=1):
        self.wait(lambda: len(self._named(name)) >= count)
        return self._named(name)

    def _named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@contextlib.contextmanager
def traced(**settings):
    memory = InMemorySpanExporter()
    spans = OpenTelemetry(sdk.SimpleSpanProcessor(memory), "mini")
    with serving(tracing=spans, **settings) as served:
        yield Traced(served, memory)


@pytest.fixture(scope="module")
def server():
    with traced() as running:
        yield running


def children(served, parent, name, count=1):
    return [span for span in served.spans(name, count) if span.parent.span_id == parent.context.span_id]


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


def test_spoken_turn(server):
    with open_client(server, additional_headers=PARENT) as client:
        client.append(np.concatenate([voice(0.3), silence(0.6)]))
        client.until("response.done", 20)
        session = client.seen[0]["session"]["id"]
    (turn,) = [span for span in server.spans("turn") if span.attributes["session.id"] == session]
    assert f"{turn.context.trace_id:032x}" == TRACE
    assert turn.attributes["gen_ai.request.model"] == "mini" and turn.attributes["sg2.time_to_first_audio"] >= 0
    (speech,) = children(server, turn, "user_speech")
    assert seconds(speech) == pytest.approx(0.3, abs=0.1)
    (endpointing,) = children(server, turn, "endpointing")
    assert endpointing.start_time == speech.end_time
    (reply,) = children(server, turn, "reply")
    assert reply.attributes["sg2.reply.reason"] == "stop"
    parts = [children(server, reply, name)[0] for name in ("recognition", "first_text", "first_audio")]
    assert all(before.end_time == after.start_time for before, after in itertools.pairwise(parts))
    (playout,) = children(server, turn, "playout")
    assert playout.start_time == parts[-1].end_time
    (request,) = [span for span in server.spans("GET /v1/realtime") if span.attributes.get("session.id") == session]
    assert turn.parent.span_id == request.context.span_id
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"


def test_access_log_and_session_log_name_the_trace(server, caplog):
    caplog.set_level(logging.INFO, "sg2")
    with open_client(server, additional_headers=PARENT):
        pass
    server.wait(lambda: len([record for record in caplog.records if hasattr(record, "fields")]) >= 2)
    lines = {record.name: record.fields for record in caplog.records if hasattr(record, "fields")}
    assert lines["sg2.access"]["trace"] == lines["sg2.server"]["trace"] == TRACE
    request = server.spans("GET /v1/realtime")[-1]
    assert request.attributes["sg2.request.id"] == lines["sg2.access"]["request"]


def test_turns_of_rest_and_its_errors(server):
    body = {"model": "mini", "messages": [{"role": "user", "content": "hello"}]}
    assert fetch(f"{server.http}/v1/chat/completions", body, PARENT) == 200
    (request,) = server.spans("POST /v1/chat/completions")
    turn = children(server, request, "turn")[0]
    assert request.attributes["http.response.status_code"] == 200
    (reply,) = children(server, turn, "reply")
    assert children(server, reply, "first_text")
    assert fetch(f"{server.http}/v1/models/other") == 404
    (request,) = server.spans("GET /v1/models/{name:path}")
    assert request.attributes["http.response.status_code"] == 404
    fetch(f"{server.http}/health")
    assert not [
        span for span in server.exporter.get_finished_spans() if "health" in span.attributes.get("url.path", "")
    ]


def test_tool_of_the_server_has_a_span(tmp_path):
    file = tmp_path / "tools.py"
    file.write_text(
        "import time\nfrom speechgpt2.assistant.functions import tool\n\n@tool\ndef weather(city: str) -> str:\n"
        '    """Look up the weather."""\n    time.sleep(0.1)\n    return "sunny"\n'
    )
    with traced(tools=ToolsConfig(functions=str(file))) as server, open_client(server) as client:
        client.update(output_modalities=["text"])
        client.write('call weather{"city": "Paris"}')
        client.until("response.done")
        client.until("response.done")
        (call,) = server.spans("execute_tool weather")
        replies = server.spans("reply", 2)
    assert call.attributes["gen_ai.tool.name"] == "weather" and seconds(call) >= 0.1
    assert len({span.parent.span_id for span in (call, *replies)}) == 1  # the same turn


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def turns():
    memory, provider, clock = InMemorySpanExporter(), TracerProvider(), Clock()
    provider.add_span_processor(sdk.SimpleSpanProcessor(memory))
    spans = TurnSpans(provider.get_tracer("test"), {}, clock=clock)
    spans._end_later = lambda: None  # there is no event loop
    spans.finished, spans.clock = memory.get_finished_spans, clock
    return spans


def test_times_of_a_turn_are_those_of_the_samples(turns):
    turns.clock.now = 1002.0
    turns.audio_received(48_000)
    turns.observe(SpeechStarted(12_000))
    turns.observe(SpeechStopped(36_000))
    turns.clock.now = 1002.1
    turns.observe(UserTurnCommitted(1, 10_000, 40_000))
    turns.close()
    spans = {span.name: (span.start_time / 1e9, span.end_time / 1e9) for span in turns.finished()}
    assert spans["turn"] == pytest.approx((1000.5, 1002.1))
    assert spans["user_speech"] == pytest.approx((1000.5, 1001.5))
    assert spans["endpointing"] == pytest.approx((1001.5, 1002.1))


def test_interrupted_playout_ends_at_the_interruption(turns):
    turns.observe(ReplyStarted(2))
    turns.observe(TextDelta("hello"))
    turns.observe(AudioDelta(voice(3)))
    turns.clock.now += 1.0
    turns.observe(Interrupted(20_000))
    turns.observe(ReplyDone("interrupted"))
    turns.observe(SpeechStarted(0))
    (playout,) = [span for span in turns.finished() if span.name == "playout"]
    assert seconds(playout) == pytest.approx(1.0)
    assert playout.attributes["sg2.interrupted"] and playout.attributes["sg2.played_seconds"] == 0.833
    (reply,) = [span for span in turns.finished() if span.name == "reply"]
    assert reply.attributes["sg2.reply.reason"] == "interrupted"


def test_call_of_a_client_ends_with_its_result(turns):
    turns.turn_added(Turn.user("hello"))
    turns.observe(ReplyStarted(2))
    turns.observe(ToolCall("weather", "{}"))
    turns.observe(ReplyDone("stop"))
    turns.clock.now += 2.0
    turns.turn_added(Turn("tool", ()))
    turns.observe(ReplyStarted(4))
    turns.close()
    spans = {span.name: span for span in turns.finished()}
    assert seconds(spans["execute_tool weather"]) == pytest.approx(2.0)
    assert [span.name for span in turns.finished()].count("turn") == 1


class Collector:
    """A collector of OTLP over HTTP on a plain socket."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.requests = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection, connection.makefile("rb") as stream:
            while first := stream.readline():
                headers = {}
                while line := stream.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers["content-length"]))
                self.requests.append((first.decode().split()[:2], headers, body))
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
                )


def test_collector_gets_a_turn(monkeypatch):
    collector = Collector()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-desk")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=voice")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    spans = tracing.start(collector.url, {}, "mini")
    with serving(tracing=spans) as served, open_client(served) as client:
        client.write("hello")
        client.until("response.done")
    names, end = set(), time.monotonic() + 10
    while "GET /v1/realtime" not in names and time.monotonic() < end:
        names = set()
        for (method, path), headers, body in list(collector.requests):
            assert (method, path) == ("POST", "/v1/traces") and headers["x-team"] == "voice"
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                values = {item.key: item.value.string_value for item in group.resource.attributes}
                assert values["service.name"] == "front-desk" and values["service.version"]
                names |= {span.name for scope in group.scope_spans for span in scope.spans}
        time.sleep(0.02)
    collector.socket.close()
    assert names == {"GET /v1/realtime", "turn", "reply", "first_text", "first_audio", "playout"}


def test_collector_that_is_away_costs_no_session(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving(tracing=tracing.start(url, {}, "mini")) as served, open_client(served) as client:
        for text in ("one", "two"):
            client.write(text)
            client.until("response.done")


def test_endpoint_and_service_name(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert {endpoint(url) for url in ("http://a:1", "http://a:1/", "http://a:1/v1/traces")} == {"http://a:1/v1/traces"}
    assert endpoint(None) is None  # the exporter reads the variable
    assert OTLPSpanExporter(endpoint(None))._endpoint == "http://collector:4318/v1/traces"
    assert resource().attributes["service.name"] == "speechgpt2"


def test_tracing_is_off_without_settings():
    for environ in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}):
        assert type(tracing.start(None, environ, "mini")) is tracing.Tracing
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    for more in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
        assert type(tracing.start(None, asked | more, "mini")) is tracing.Tracing
    started = tracing.start(None, asked, "mini")
    assert isinstance(started, OpenTelemetry)
    started.close()


def test_settings_that_cannot_be_followed(caplog):
    with pytest.raises(UserError, match=r"address of a collector, such as http://localhost:4318, not 'collector:4318'"):
        tracing.start("collector:4318", {}, "mini")
    with pytest.raises(UserError, match="OTEL_SDK_DISABLED=true turns tracing off"):
        tracing.start("http://collector:4318", {"OTEL_SDK_DISABLED": "true"}, "mini")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    tracing.start(None, environ | {"OTEL_TRACES_EXPORTER": "console"}, "mini").close()
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc has no effect" in caplog.text
    assert "OTEL_TRACES_EXPORTER=console has no effect" in caplog.text


def test_missing_extra(monkeypatch, caplog):
    def missing(module, extra):
        raise MissingDependency("it lacks opentelemetry")

    monkeypatch.setattr(tracing.extras, "require", missing)
    with pytest.raises(MissingDependency, match=r"pip install 'speechgpt2\[telemetry\]'"):
        tracing.start("http://collector:4318", {}, "mini")
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert type(tracing.start(None, asked, "mini")) is tracing.Tracing
    assert "OTEL_EXPORTER_OTLP_ENDPOINT has no effect" in caplog.text
