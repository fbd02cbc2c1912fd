"""Failures of sockets and clients: no slot leaks, and other sessions are not affected."""

import asyncio
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechgpt2.server.auth import BROWSER_KEY
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.outbound import OutboundQueue
from speechgpt2.types import Error
from tests.server.conftest import open_client, serving, silence, voice
from tests.server.test_realtime import QUICK

KEY = {"additional_headers": {"Authorization": "Bearer a-good-key"}}


def status_of(error):
    return error.value.response.status_code


def closed(client, seconds=10.0):
    """The close code and reason, once the server closes."""
    with pytest.raises(ConnectionClosed) as error:
        while True:
            client.socket.recv(timeout=seconds)
    return error.value.rcvd.code if error.value.rcvd else None, str(error.value)


def test_keys_and_origins_are_checked_before_the_upgrade():
    with serving(api_keys=("a-good-key",), allowed_origins=("https://app.example",)) as served:
        for options in (
            {},
            {"additional_headers": {"Authorization": "Bearer wrong-key"}},
            {"subprotocols": ["realtime"]},
        ):
            with pytest.raises(InvalidStatus) as error, open_client(served, **options):
                pass
            assert (
                status_of(error) == 401 and json.loads(error.value.response.body)["error"]["code"] == "invalid_api_key"
            )
        with pytest.raises(InvalidStatus) as error, open_client(served, origin="https://evil.example", **KEY):
            pass
        assert status_of(error) == 403
        with open_client(served, origin="https://app.example", **KEY), open_client(served, origin=served.http, **KEY):
            pass
        with open_client(served, subprotocols=["realtime", BROWSER_KEY + "a-good-key"]) as client:
            assert client.socket.subprotocol == "realtime"
        with open_client(served, **KEY) as client:
            assert client.socket.subprotocol is None
        served.wait(lambda: not served.app.gateway.admission.active)


def test_client_secrets():
    def ask(**body):
        data = json.dumps(body).encode()
        headers = {"Authorization": "Bearer a-good-key", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{served.http}/v1/realtime/client_secrets", data, headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    with serving(api_keys=("a-good-key",)) as served:
        given = ask(session={"type": "realtime", "instructions": "Rhyme."}, expires_after={"seconds": 60})
        assert given["value"].startswith("ek_") and 50 < given["expires_at"] - time.time() <= 60
        assert given["session"]["instructions"] == "Rhyme."
        with open_client(served, subprotocols=["realtime", BROWSER_KEY + given["value"]]) as client:
            assert client.seen[0]["session"]["instructions"] == "Rhyme."
        assert 590 < ask()["expires_at"] - time.time() <= 600
        for bad in ({"expires_after": {"seconds": 9}}, {"expires_after": {"seconds": 7201}}, {"session": {"audio": 1}}):
            with pytest.raises(urllib.error.HTTPError) as error:
                ask(**bad)
            assert error.value.code == 400 and json.load(error.value)["error"]["param"]


def test_full_server_rejects_at_once():
    with serving(slots=1) as served, open_client(served):
        begin = time.monotonic()
        with pytest.raises(InvalidStatus) as error, open_client(served):
            pass
        assert status_of(error) == 503 and int(error.value.response.headers["retry-after"]) > 0
        assert time.monotonic() - begin < 2
        with pytest.raises(urllib.error.HTTPError) as ready:
            urllib.request.urlopen(f"{served.http}/ready")
        assert ready.value.code == 503
        text = urllib.request.urlopen(f"{served.http}/metrics").read().decode()
        assert 'sg2_rejections_total{reason="full"} 1.0' in text


def test_limit_of_sessions_per_key():
    with (
        serving(api_keys=("a-good-key", "another-key"), limits=LimitsConfig(sessions_per_key=1)) as served,
        open_client(served, **KEY),
    ):
        with pytest.raises(InvalidStatus) as error, open_client(served, **KEY):
            pass
        assert status_of(error) == 429
        with open_client(served, additional_headers={"Authorization": "Bearer another-key"}):
            pass


def test_session_and_idle_limits():
    with serving(limits=LimitsConfig(session_seconds=0.5)) as served, open_client(served) as client:
        assert client.until("error")[-1]["error"]["code"] == "session_expired"
        assert closed(client)[0] == 1008
    with serving(limits=LimitsConfig(idle_seconds=0.4)) as served, open_client(served) as client:
        assert client.until("error")[-1]["error"]["code"] == "session_expired"
        assert closed(client)[0] == 1008
        served.wait(lambda: not served.app.gateway.admission.active)


def test_oversized_message_closes_with_1009(served):
    with open_client(served) as client:
        client.socket.send('{"type": "input_audio_buffer.append", "audio": "' + "A" * 2**24 + '"}')
        assert closed(client)[0] == 1009
    served.wait(lambda: not served.engine.open_sessions)


def abort(client):
    """End the connection as a crash does: no close frame, a reset."""
    raw = client.socket.socket
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def test_connection_reset_during_a_response(served):
    client_context = open_client(served)
    client = client_context.__enter__()
    client.write("tell me all")
    client.until("response.output_audio.delta")
    abort(client)
    served.wait(lambda: not served.engine.open_sessions and not served.app.gateway.admission.active)
    with open_client(served) as other:
        other.update(output_modalities=["text"])
        other.write("hello")
        assert other.until("response.done")[-1]["response"]["status"] == "completed"


def test_slow_client_is_disconnected():
    with serving(limits=LimitsConfig(outbound_bytes=200_000)) as served:
        raw = socket.create_connection(("127.0.0.1", served.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        served.wait(lambda: served.app.gateway.sessions)
        message = b'{"type": "nonsense"}'
        frame = bytes([0x81, 0x80 | len(message)]) + bytes(4) + message  # masked with zeros
        raw.settimeout(1)
        with open_client(served) as other:
            end = time.monotonic() + 20
            while served.app.gateway.admission.active > 1 and time.monotonic() < end:
                try:
                    raw.sendall(frame * 200)
                except (OSError, TimeoutError):
                    break
            served.wait(lambda: served.app.gateway.admission.active == 1, 10)
            other.update(output_modalities=["text"])
            other.write("hello")
            assert other.until("response.done")[-1]["response"]["status"] == "completed"
        served.wait(lambda: not served.server.server_state.connections, 10)  # the socket itself is gone, too
        raw.close()


def test_messages_wait_while_the_engine_is_backlogged(served):
    with open_client(served) as client, open_client(served) as other:
        session = served.engine.open_sessions[0]
        session.backlogged = True
        client.update(instructions="Be brief.")  # it is done, and then it shows that too much was asked
        client.send("session.update", session={"type": "realtime", "instructions": "Be loud."})
        other.update(instructions="Be kind.")
        time.sleep(0.2)
        assert session.settings.instructions == "Be brief."
        session.backlogged = False
        served.wait(lambda: session.settings.instructions == "Be loud.")


def test_random_faults_leak_no_slot(served):
    """Many failures in a few seconds; afterwards every slot is free, and a session works."""
    rng = random.Random(1)
    for _ in range(25):
        context = open_client(served)
        try:
            client = context.__enter__()
        except InvalidStatus as error:
            assert error.response.status_code == 503  # the last one is not quite gone
            time.sleep(0.05)
            continue
        client.update(**QUICK, max_output_tokens=rng.randint(1, 4))
        fault = rng.choice(["abort", "close", "json", "base64", "talk", "drop"])
        if fault in ("talk", "drop"):
            client.append(voice(0.2))
            client.append(silence(0.15))
            client.until("response.created")
        if fault in ("abort", "drop"):
            abort(client)
            continue
        if fault in ("json", "base64"):
            client.socket.send("{" if fault == "json" else '{"type": "input_audio_buffer.append", "audio": "?"}')
            client.until("error")
        if fault == "talk":
            client.until("response.done")
        context.__exit__(None, None, None)
    served.wait(lambda: not served.engine.open_sessions and not served.app.gateway.admission.active)
    assert not served.app.gateway.sessions
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        client.write("hello")
        assert client.until("response.done")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("responding", [False, True])
def test_failed_session_is_closed_with_its_reason(served, responding):
    with open_client(served) as client:
        session = served.engine.open_sessions[-1]
        if responding:
            client.write("slow and long")
            client.until("response.output_audio.delta")
        loop = session_loop(served)
        loop.call_soon_threadsafe(session.say, Error("the engine has failed and ends this session"))
        loop.call_soon_threadsafe(session.close)
        if responding:
            done = client.until("response.done")[-1]["response"]
            assert done["status"] == "failed" and "engine has failed" in done["status_details"]["error"]["message"]
        else:
            error = client.until("error")[-1]["error"]
            assert error["type"] == "server_error" and "engine has failed" in error["message"]
        code, text = closed(client)
        assert code == 1011 and "open another one" in text
    served.wait(lambda: not served.app.gateway.admission.active)


def session_loop(served):
    return served.server.servers[0].get_loop()


SERVER = """
from tests.server.fake import FakeDialogue, FakeEngine
from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig
from speechgpt2.server import launch
launch.run(App(ServerConfig(port=0), FakeEngine(), FakeDialogue))
"""


def test_sigterm_drains():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)$", process.stdout.readline().strip())[1])
        served = type("Served", (), {"ws": f"ws://127.0.0.1:{port}/v1/realtime"})
        with open_client(served) as idle, open_client(served) as client:
            client.update(max_output_tokens=8)
            client.write("hello")
            client.until("response.output_audio.delta")
            process.terminate()
            assert closed(idle)[0] == 1001
            with pytest.raises(InvalidStatus) as error, open_client(served):
                pass
            assert status_of(error) == 503
            done = client.until("response.done")[-1]["response"]
            assert len(done["output"][0]["content"][0]["transcript"].split()) == 8
            assert closed(client)[0] == 1001
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_abrupt_close_logs_no_error(served, caplog):
    with open_client(served) as client:
        client.append(voice(0.1))
    served.wait(lambda: not served.app.gateway.admission.active)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_discarded_queue_is_empty():
    queue = OutboundQueue(1_000)
    queue.put("x" * 900)
    queue.discard()
    assert queue.queued_bytes == 0 and asyncio.run(queue.get()) is None
    queue.put("more")
    assert queue.queued_bytes == 0
