"""Guests of all kinds for two minutes before a real `sg2 serve`; and that the soak notices what goes wrong."""

import asyncio
import random
from pathlib import Path

import pytest

from speechgpt2.bench import guests, soak
from tests.server.conftest import serving, voice


@pytest.mark.slow
def test_two_minutes():
    result = soak.main(2, slots=2, questions=Path(__file__).parents[2] / "examples")
    assert result.wrong == [] and result.exit_code in soak.EXITS
    assert result.answers and result.faults


def house(url, key="a-good-key"):
    return guests.House(url, key, [voice(0.6)], random.Random(1), guests.Book())


@pytest.mark.parametrize("guest", guests.HEALTHY + guests.FAULTY, ids=lambda guest: guest.__name__)
def test_a_good_server_is_left_as_it_was(guest):
    with serving(slots=1, api_keys=("a-good-key",)) as served:
        inside = house(served.http)
        asyncio.run(guests.visit(guest, inside))
        assert inside.book.wrong == [] and not inside.book.refused
        asyncio.run(soak.all_free(inside, 1))


def test_what_goes_wrong_is_noticed(monkeypatch):
    with serving(slots=1, api_keys=("a-good-key",)) as served:
        visitor = house(served.http)
        monkeypatch.setattr(guests, "TEXTS", ["please fail"])
        asyncio.run(guests.visit(guests.writes, visitor))
        assert "an answer failed" in visitor.book.wrong[-1]
        asyncio.run(guests.visit(guests.writes, house(served.http, "a-wrong-key")))
        with served.app.admission.place("anyone"):
            assert soak.taken_slots(served.http) == 1
            asyncio.run(guests.visit(guests.writes, visitor))
            assert visitor.book.refused == 1
    with serving(slots=1) as served:
        open_to_all = house(served.http)
        asyncio.run(guests.visit(guests.intrudes, open_to_all))
        assert "a wrong key was let in" in open_to_all.book.wrong[-1]


def test_a_leak_is_told_from_a_warm_up():
    flat = [(second, 600 - 50 * max(0, 1 - second / 100)) for second in range(600)]
    mean, gained = soak.trend(flat)
    assert mean == pytest.approx(600) and gained == pytest.approx(0, abs=1e-6)
    assert soak.trend([(second, 600 + second / 60) for second in range(600)])[1] == pytest.approx(60)
