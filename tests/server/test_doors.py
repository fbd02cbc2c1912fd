"""Who may connect, and for how long without saying anything."""

import asyncio
import base64
import http.client
import json
import socket
import ssl
import time

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from speechgpt2.errors import UserError
from speechgpt2.server import certificates
from speechgpt2.server.auth import Authenticator
from speechgpt2.server.config import LimitsConfig, ServerConfig
from speechgpt2.server.launch import max_connections
from tests import needs
from tests.server.conftest import open_client, serving
from tests.server.fake import FakeDialogue


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:8000", True),
        ("192.168.1.4:8000", True),
        ("my-server.local:8000", True),
        (None, True),  # HTTP/1.0; browsers always send one
        ("evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("localhost.evil.test:8000", False),
        ("[::1", False),
        ("a:b:c", False),
        ("", False),
    ],
)
def test_keyless_server_is_addressed_by_its_own_names(host, allowed):
    assert Authenticator([], [], hosts=["my-server.local"]).allows_host(host) is allowed
    assert Authenticator(["a-good-key"], []).allows_host(host)  # a page on a foreign name has no key
    assert Authenticator([], [], hosts=["*"]).allows_host(host)


@pytest.mark.parametrize(
    "origin", ["http://[::1", "null", "", "//", "http://a:99999", "\x00", "http://127.0.0.1:8000@evil"]
)
def test_strange_origins_are_foreign(origin):
    assert not Authenticator([], []).allows_origin(origin, "127.0.0.1:8000")


def get(served, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read()


def test_dns_rebinding_is_refused():
    with serving() as served:
        for path in ("/v1/models", "/v1/realtime/calls"):
            method = "POST" if "calls" in path else "GET"
            status, body = get(served, path, method, Host="evil.test", Origin="http://evil.test")
            assert status == 403 and json.loads(body)["error"]["code"] == "invalid_host"
        assert get(served, "/v1/models", Origin="http://[::1")[0] == 403
        assert get(served, "/v1/models", Host=f"localhost:{served.port}")[0] == 200


def test_client_secret_creates_no_other():
    with serving(api_keys=("a-good-key",)) as served:
        path = "/v1/realtime/client_secrets"
        status, body = get(served, path, "POST", "{}", Authorization="Bearer a-good-key")
        secret = json.loads(body)["value"]
        assert status == 200 and secret.startswith("ek_")
        status, body = get(
            served, path, "POST", '{"expires_after": {"seconds": 7200}}', Authorization=f"Bearer {secret}"
        )
        assert status == 403 and json.loads(body)["error"]["code"] == "insufficient_permissions"


def closed(connection):
    """Whether the other side has closed."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_open_connections_are_closed():
    with serving(limits=LimitsConfig(header_seconds=0.5)) as served:
        silent = socket.create_connection(("127.0.0.1", served.port), timeout=5)
        slow = socket.create_connection(("127.0.0.1", served.port), timeout=5)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        second = socket.create_connection(("127.0.0.1", served.port), timeout=5)
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b'"ok"}' not in answer:
            answer += second.recv(4096)
        second.sendall(b"GET /health HTT")
        began = time.monotonic()
        assert all(closed(each) for each in (silent, slow, second))
        assert time.monotonic() - began < 4
        assert get(served, "/health")[0] == 200


def test_too_many_connections_leave_the_server_alive():
    with serving(limits=LimitsConfig(connections=5)) as served:
        held = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(5)]
        served.wait(lambda: len(served.server.server_state.connections) == 5)
        assert closed(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        for each in held:
            each.close()
        served.wait(lambda: not served.server.server_state.connections)
        assert get(served, "/health")[0] == 200
    assert 0 < max_connections(LimitsConfig(connections=10**9)) < 10**9


def test_endless_headers_are_cut_off():
    with serving() as served:
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=5)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(10_000):
                connection.sendall(b"x" * 1_000)
                time.sleep(0.0005)
        assert get(served, "/health")[0] == 200


# TLS


@needs.extra("server", "cryptography")
def test_https_and_wss_with_a_self_signed_certificate(tmp_path):
    certificate, key = certificates.self_signed(tmp_path, ("my-server.local",))
    assert certificates.self_signed(tmp_path) == (certificate, key) and key.stat().st_mode & 0o077 == 0
    before = certificate.read_bytes()
    certificates.self_signed(tmp_path, ("my-server.local",))
    assert certificate.read_bytes() == before  # browsers need not be asked again
    certificates.check(str(certificate), str(key))
    trust = ssl.create_default_context(cafile=str(certificate))
    with serving(ssl_certfile=str(certificate), ssl_keyfile=str(key)) as served:
        connection = http.client.HTTPSConnection("localhost", served.port, timeout=10, context=trust)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        url = f"wss://127.0.0.1:{served.port}/v1/realtime"
        origin = f"https://127.0.0.1:{served.port}"
        with connect(url, ssl=trust, proxy=None, origin=origin) as session:
            assert json.loads(session.recv(timeout=10))["type"] == "session.created"


def test_bad_certificates_are_one_line(tmp_path):
    (tmp_path / "bad.pem").write_text("no certificate")
    for path, message in (("bad.pem", "no certificate with its key"), ("absent.pem", "no such file")):
        with pytest.raises(UserError, match=message):
            certificates.check(str(tmp_path / path), None)
    with pytest.raises(UserError, match="needs ssl_certfile"):
        ServerConfig(ssl_keyfile="key.pem")


# neighbours


def test_long_append_lets_other_sessions_go_on(monkeypatch):
    """One message with minutes of audio is processed second by second."""
    slow = FakeDialogue.append_audio

    def append_audio(self, pcm):
        time.sleep(0.02)  # as voice activity detection takes
        slow(self, pcm)

    monkeypatch.setattr(FakeDialogue, "append_audio", append_audio)
    with serving() as served, open_client(served) as first, open_client(served) as second:
        for client in (first, second):
            client.update(audio={"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}})
        first.send("input_audio_buffer.append", audio=base64.b64encode(bytes(200 * 8_000)).decode())  # 4 s of work
        time.sleep(0.2)
        began = time.monotonic()
        second.send("input_audio_buffer.clear")
        second.until("input_audio_buffer.cleared")
        assert time.monotonic() - began < 1.5
        first.send("input_audio_buffer.clear")
        first.until("input_audio_buffer.cleared", 20)


# a failed engine


def test_failed_engine_refuses_clients_and_stops_the_server():
    with serving() as served:
        assert get(served, "/health")[0] == 200  # the first look of the server itself is over
        served.server.config.callback_notify = None
        served.engine.alive = False
        status, body = get(served, "/v1/audio/speech", "POST", json.dumps({"model": "mini", "input": "x"}))
        assert status == 503 and json.loads(body)["error"]["message"] == "The engine has failed."
        assert get(served, "/health")[0] == 503
        asyncio.run(served.server.watch())
        assert served.server.failed and served.server.should_exit


# access log


def test_access_log_names_requests_and_refusals(caplog):
    caplog.set_level("INFO", logger="sg2")
    with serving(api_keys=("a-good-key",)) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.request("GET", "/nothing", headers={"X-Request-Id": "of-the-proxy"})
        assert connection.getresponse().headers["x-request-id"] == "of-the-proxy"
        with pytest.raises(InvalidStatus), connect(served.ws, proxy=None):
            pass
        get(served, "/health")
    lines = [record.fields for record in caplog.records if record.name == "sg2.access"]
    assert [(line["path"], line["status"]) for line in lines] == [("/nothing", 404), ("/v1/realtime", 401)]
    assert lines[0]["request"] == "of-the-proxy" and lines[1]["request"].startswith("req_")
    refused = [record.fields for record in caplog.records if "refused" in record.message]
    assert refused == [{"client": "127.0.0.1", "reason": "Incorrect or missing API key."}]
