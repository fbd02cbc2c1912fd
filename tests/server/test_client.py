"""The playback tracker and URLs of the client."""

import pytest

from speechgpt2.client import PlaybackTracker, realtime_url
from speechgpt2.types import SAMPLE_RATE


def test_playback_advances_with_time():
    tracker = PlaybackTracker()
    tracker.add_audio("a", SAMPLE_RATE, 10.0)
    assert tracker.remaining_seconds(10.25) == pytest.approx(0.75)
    tracker.add_audio("a", SAMPLE_RATE, 10.5)
    assert tracker.interrupt(11.0) == ("a", 1000)
    assert tracker.remaining_seconds(11.0) == 0 and tracker.interrupt(11.1) is None and tracker.underruns == 0


def test_items_play_one_after_the_other():
    tracker = PlaybackTracker()
    tracker.add_audio("a", SAMPLE_RATE, 0.0)
    tracker.mark_complete("a")
    tracker.add_audio("b", SAMPLE_RATE, 0.5)
    assert tracker.interrupt(1.2) == ("b", 200)


def test_complete_playback_is_not_interrupted():
    tracker = PlaybackTracker()
    tracker.add_audio("a", SAMPLE_RATE, 0.0)
    tracker.mark_complete("a")
    assert tracker.interrupt(5.0) is None


def test_underrun_is_counted_and_can_be_interrupted():
    tracker = PlaybackTracker()
    tracker.add_audio("a", 2400, 0.0)
    tracker.add_audio("a", 2400, 0.3)
    assert tracker.underruns == 1
    assert tracker.interrupt(9.0) == ("a", 200)


def test_buffer_delays_start_and_covers_late_audio():
    tracker = PlaybackTracker(buffer_seconds=0.1)
    tracker.add_audio("a", 2400, 0.0)
    tracker.add_audio("a", 2400, 0.15)
    assert tracker.underruns == 0
    assert tracker.interrupt(0.2) == ("a", 100)


@pytest.mark.parametrize(
    ("url", "model", "address"),
    [
        ("http://host:8000", "mini", "ws://host:8000/v1/realtime?model=mini"),
        ("https://host/sub/", "", "wss://host/sub/v1/realtime"),
        ("host:8000", "", "ws://host:8000/v1/realtime"),
        ("ws://host/v1/realtime", "a b", "ws://host/v1/realtime?model=a%20b"),
    ],
)
def test_realtime_url(url, model, address):
    assert realtime_url(url, model) == address
