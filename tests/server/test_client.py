"""The books of a loudspeaker, and addresses."""

import pytest

from speechgpt2.client import Listener, realtime_url
from speechgpt2.types import SAMPLE_RATE


def test_an_answer_is_heard_as_time_goes_on():
    listener = Listener()
    listener.arrive("a", SAMPLE_RATE, 10.0)
    assert listener.left(10.25) == pytest.approx(0.75)
    listener.arrive("a", SAMPLE_RATE, 10.5)
    assert listener.flush(11.0) == ("a", 1000)
    assert listener.left(11.0) == 0 and listener.flush(11.1) is None and listener.underruns == 0


def test_answers_are_heard_one_after_the_other():
    listener = Listener()
    listener.arrive("a", SAMPLE_RATE, 0.0)
    listener.complete("a")
    listener.arrive("b", SAMPLE_RATE, 0.5)
    assert listener.flush(1.2) == ("b", 200)


def test_what_was_heard_to_its_end_is_not_cut():
    listener = Listener()
    listener.arrive("a", SAMPLE_RATE, 0.0)
    listener.complete("a")
    assert listener.flush(5.0) is None


def test_an_answer_that_runs_dry_is_counted_and_can_still_be_cut():
    listener = Listener()
    listener.arrive("a", 2400, 0.0)
    listener.arrive("a", 2400, 0.3)
    assert listener.underruns == 1
    assert listener.flush(9.0) == ("a", 200)


def test_a_cushion_delays_the_start_and_covers_late_chunks():
    listener = Listener(cushion=0.1)
    listener.arrive("a", 2400, 0.0)
    listener.arrive("a", 2400, 0.15)
    assert listener.underruns == 0
    assert listener.flush(0.2) == ("a", 100)


@pytest.mark.parametrize(
    ("url", "model", "address"),
    [
        ("http://host:8000", "mini", "ws://host:8000/v1/realtime?model=mini"),
        ("https://host/sub/", "", "wss://host/sub/v1/realtime"),
        ("host:8000", "", "ws://host:8000/v1/realtime"),
        ("ws://host/v1/realtime", "a b", "ws://host/v1/realtime?model=a%20b"),
    ],
)
def test_addresses(url, model, address):
    assert realtime_url(url, model) == address
