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
from tests.server.conftest import line

needs.module("ray", "ray")

from speechgpt2.scale import deployment
from speechgpt2.server.config import LimitsConfig, ScaleConfig, ServerConfig
from tests.scale.fake import make_app

pytestmark = pytest.mark.slow
PATIENCE = 90.0  # seconds: Ray takes its time, and other programs may be running


class House:
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
        end = time.monotonic() + PATIENCE
        while not ready(self.who()):
            assert time.monotonic() < end, self.who()
            time.sleep(0.5)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def running():
    scale = ScaleConfig(replicas=2, cpus=0.1)
    config = ServerConfig(port=free_port(), slots=2, scale=scale, limits=LimitsConfig(drain_seconds=20.0))
    deployment.start(config)
    deployment.deploy(config, make_app)
    yield House(config)
    deployment.stop()


@pytest.fixture
def house(running):
    running.until(lambda found: len(found) == 2 and not sum(taken for taken, _ in found.values()))
    return running


def answers(client, words="hello"):
    client.write(words)
    return client.until("response.done", PATIENCE)[-1]["response"]["status"]


def code_of(client):
    """The close code, once the server closes."""
    with pytest.raises(ConnectionClosed) as error:
        while True:
            client.socket.recv(timeout=PATIENCE)
    return error.value.rcvd.code if error.value.rcvd else None


def test_sessions_spread_and_the_cap_refuses_at_once(house):
    with contextlib.ExitStack() as sessions:
        clients = [sessions.enter_context(line(house, open_timeout=PATIENCE)) for _ in range(4)]
        assert [taken for taken, _ in house.who().values()] == [2, 2]
        begin = time.monotonic()
        with pytest.raises(InvalidStatus) as error, line(house, open_timeout=PATIENCE):
            pass
        response = error.value.response
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert json.loads(response.body)["error"]["code"] == "server_overloaded"
        assert time.monotonic() - begin < 5
        body = json.dumps({"model": "mini", "input": "hello", "voice": "x"}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(f"{house.http}/v1/audio/speech", body, {"Content-Type": "application/json"})
            )
        assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) > 0
        assert [answers(client) for client in clients] == ["completed"] * 4


def test_a_secret_of_one_replica_opens_all(house):
    request = urllib.request.Request(f"{house.http}/v1/realtime/client_secrets", b"{}")
    with urllib.request.urlopen(request) as answer:
        key = json.load(answer)["value"]
    with contextlib.ExitStack() as sessions:
        for _ in range(4):
            sessions.enter_context(
                line(house, subprotocols=["realtime", f"openai-insecure-api-key.{key}"], open_timeout=PATIENCE)
            )
        house.until(lambda who: [taken for taken, _ in who.values()] == [2, 2])


def test_a_replica_that_dies_takes_only_its_own(house):
    with line(house, open_timeout=PATIENCE) as one:
        busy = next(pid for pid, (taken, _) in house.who().items() if taken)
        with line(house, open_timeout=PATIENCE) as other:
            one.write("a slow question")
            one.until("response.output_audio.delta", PATIENCE)
            other.write("a slow question")
            other.until("response.output_audio.delta", PATIENCE)
            os.kill(busy, signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                one.until("response.done", PATIENCE)
            assert other.until("response.done", PATIENCE)[-1]["response"]["status"] == "completed"
            assert answers(other) == "completed"
            house.until(lambda found: len(found) == 2 and busy not in found)  # Ray has started another
            with line(house, open_timeout=PATIENCE) as third:
                assert answers(third) == "completed"


def test_a_replica_whose_engine_fails_is_started_anew(house):
    with urllib.request.urlopen(f"{house.http}/fail") as answer:
        broken = int(answer.read())
    house.until(lambda found: len(found) == 2 and broken not in found)
    with line(house, open_timeout=PATIENCE) as client:
        assert answers(client) == "completed"


def test_to_deploy_again_drains(house):
    before = set(house.who())
    config = dataclasses.replace(house.config, model="another")
    with line(house, open_timeout=PATIENCE) as idle, line(house, open_timeout=PATIENCE) as client:
        client.write("a slow question")
        client.until("response.output_audio.delta", PATIENCE)
        deploying = threading.Thread(target=deployment.deploy, args=(config, make_app))
        deploying.start()
        words = client.until("response.done", PATIENCE)[-1]["response"]["output"][0]["content"][0]["transcript"]
        assert words.endswith("more than you may want to hear")
        assert code_of(client) == 1001 and code_of(idle) == 1001
        deploying.join(PATIENCE)
    house.until(lambda found: len(found) == 2 and not before & set(found))
    assert {model for _, model in house.who().values()} == {"another"}
    with line(house, open_timeout=PATIENCE) as client:
        assert answers(client) == "completed"
