"""Who may connect, and for how long without saying anything."""

import http.client
import json
import socket
import time

import pytest

from speechgpt2.server.auth import Authenticator
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.launch import max_connections
from tests.server.conftest import serving


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
