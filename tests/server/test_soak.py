"""The soak test: two minutes against a real `sg2 serve`, and whether it detects failures."""

import asyncio
import random
from pathlib import Path

import pytest

from speechgpt2.bench import load_clients, soak
from tests.server.conftest import serving, voice


@pytest.mark.slow
def test_soak_of_two_minutes():
    result = soak.main(2, slots=2, questions=Path(__file__).parents[2] / "examples")
    assert result.failures == [] and result.exit_code in soak.EXIT_CODES
    assert result.responses and result.misbehaving


def make_test(url, key="a-good-key"):
    return load_clients.LoadTest(url, key, [voice(0.6)], random.Random(1), load_clients.Stats())


@pytest.mark.parametrize(
    "client", load_clients.WELL_BEHAVED + load_clients.MISBEHAVING, ids=lambda client: client.__name__
)
def test_clients_find_no_failure(client):
    with serving(slots=1, api_keys=("a-good-key",)) as served:
        test = make_test(served.http)
        asyncio.run(load_clients.run_client(client, test))
        assert test.stats.failures == [] and not test.stats.rejected
        asyncio.run(soak.check_slots(test, 1))


def test_failures_are_detected(monkeypatch):
    with serving(slots=1, api_keys=("a-good-key",)) as served:
        test = make_test(served.http)
        monkeypatch.setattr(load_clients, "TEXTS", ["please fail"])
        asyncio.run(load_clients.run_client(load_clients.text_client, test))
        assert "a response failed" in test.stats.failures[-1]
        asyncio.run(load_clients.run_client(load_clients.text_client, make_test(served.http, "a-wrong-key")))
        with served.app.gateway.admission.admit("anonymous"):
            assert soak.slots_in_use(served.http) == 1
            asyncio.run(load_clients.run_client(load_clients.text_client, test))
            assert test.stats.rejected == 1
    with serving(slots=1) as served:
        keyless = make_test(served.http)
        asyncio.run(load_clients.run_client(load_clients.wrong_key_client, keyless))
        assert "a wrong key was accepted" in keyless.stats.failures[-1]


def test_memory_trend():
    flat = [(second, 600 - 50 * max(0, 1 - second / 100)) for second in range(600)]
    mean, gained = soak.memory_trend(flat)
    assert mean == pytest.approx(600) and gained == pytest.approx(0, abs=1e-6)
    assert soak.memory_trend([(second, 600 + second / 60) for second in range(600)])[1] == pytest.approx(60)
