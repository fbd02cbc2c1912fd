"""Two replicas on Ray Serve: sessions spread, the cap refuses, one dies alone, redeploying drains."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import needs
from tests.server.conftest import open_client

needs.module("ray", "ray")

from speechgpt2.scale import deployment
from speechgpt2.server.config import LimitsConfig, ScaleConfig, ServerConfig
from tests.scale.fake import make_app

pytestmark = pytest.mark.slow
TIMEOUT = 90.0  # seconds: Ray takes its time, and other programs may be running


class Deployment:
    """Where the replicas are reached."""

    def __init__(self, config):
        self.config = config
        self.http, self.ws = f"http://127.0.0.1:{config.port}", f"ws://127.0.0.1:{config.port}/v1/realtime"

    def who(self, tries=24):
        """The replicas by their processes: how many sessions each has, and what it serves."""
        found = {}
        for _ in range(tries):
            with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{self.http}/who") as answer:
                pid, taken, model = answer.read().decode().split()
                found[int(pid)] = int(taken), model
        return found

    def until(self, ready):
        end = time.monotonic() + TIMEOUT
        while not ready(self.who()):
            assert time.monotonic() < end, self.who()
            time.sleep(0.5)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def running():
    scale = ScaleConfig(replicas=2, num_cpus=0.1)
    config = ServerConfig(port=free_port(), slots=2, scale=scale, limits=LimitsConfig(drain_seconds=20.0))
    deployment.start_ray(config)
    deployment.deploy(config, make_app)
    yield Deployment(config)
    deployment.stop()


@pytest.fixture
def replicas(running):
    running.until(lambda found: len(found) == 2 and not sum(taken for taken, _ in found.values()))
    return running


def response_status(client, words="hello"):
    client.write(words)
    return client.until("response.done", TIMEOUT)[-1]["response"]["status"]


def close_code(client):
    """The close code, once the server closes."""
    with pytest.raises(ConnectionClosed) as error:
        while True:
            client.socket.recv(timeout=TIMEOUT)
    return error.value.rcvd.code if error.value.rcvd else None


def test_sessions_spread_and_full_replicas_reject(replicas):
    with contextlib.ExitStack() as sessions:
        clients = [sessions.enter_context(open_client(replicas, open_timeout=TIMEOUT)) for _ in range(4)]
        assert [taken for taken, _ in replicas.who().values()] == [2, 2]
        begin = time.monotonic()
        with pytest.raises(InvalidStatus) as error, open_client(replicas, open_timeout=TIMEOUT):
            pass
        response = error.value.response
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert json.loads(response.body)["error"]["code"] == "server_overloaded"
        assert time.monotonic() - begin < 5
        body = json.dumps({"model": "mini", "input": "hello", "voice": "default"}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(f"{replicas.http}/v1/audio/speech", body, {"Content-Type": "application/json"})
            )
        assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) > 0
        assert [response_status(client) for client in clients] == ["completed"] * 4


def test_client_secret_works_on_all_replicas(replicas):
    request = urllib.request.Request(f"{replicas.http}/v1/realtime/client_secrets", b"{}")
    with urllib.request.urlopen(request) as answer:
        key = json.load(answer)["value"]
    with contextlib.ExitStack() as sessions:
        for _ in range(4):
            sessions.enter_context(
                open_client(replicas, subprotocols=["realtime", f"openai-insecure-api-key.{key}"], open_timeout=TIMEOUT)
            )
        replicas.until(lambda who: [taken for taken, _ in who.values()] == [2, 2])


def test_crashed_replica_ends_only_its_sessions(replicas):
    with open_client(replicas, open_timeout=TIMEOUT) as one:
        busy = next(pid for pid, (taken, _) in replicas.who().items() if taken)
        with open_client(replicas, open_timeout=TIMEOUT) as other:
            one.write("a slow question")
            one.until("response.output_audio.delta", TIMEOUT)
            other.write("a slow question")
            other.until("response.output_audio.delta", TIMEOUT)
            os.kill(busy, signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                one.until("response.done", TIMEOUT)
            assert other.until("response.done", TIMEOUT)[-1]["response"]["status"] == "completed"
            assert response_status(other) == "completed"
            replicas.until(lambda found: len(found) == 2 and busy not in found)  # Ray has started another
            with open_client(replicas, open_timeout=TIMEOUT) as third:
                assert response_status(third) == "completed"


def test_failed_engine_restarts_the_replica(replicas):
    with urllib.request.urlopen(f"{replicas.http}/fail") as answer:
        broken = int(answer.read())
    replicas.until(lambda found: len(found) == 2 and broken not in found)
    with open_client(replicas, open_timeout=TIMEOUT) as client:
        assert response_status(client) == "completed"


def test_redeployment_drains(replicas):
    before = set(replicas.who())
    config = dataclasses.replace(replicas.config, model="another")
    with open_client(replicas, open_timeout=TIMEOUT) as idle, open_client(replicas, open_timeout=TIMEOUT) as client:
        client.write("a slow question")
        client.until("response.output_audio.delta", TIMEOUT)
        deploying = threading.Thread(target=deployment.deploy, args=(config, make_app))
        deploying.start()
        words = client.until("response.done", TIMEOUT)[-1]["response"]["output"][0]["content"][0]["transcript"]
        assert words.endswith("more than you may want to hear")
        assert close_code(client) == 1001 and close_code(idle) == 1001
        deploying.join(TIMEOUT)
    replicas.until(lambda found: len(found) == 2 and not before & set(found))
    assert {model for _, model in replicas.who().values()} == {"another"}
    with open_client(replicas, open_timeout=TIMEOUT) as client:
        assert response_status(client) == "completed"
