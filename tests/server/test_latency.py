"""The latencies that a session's metrics report."""

import time

from speechgpt2.server.context import LatencyMeter
from speechgpt2.server.metrics import Metrics


def total(histogram):
    """The number of observations and their sum."""
    values = {sample.name.rsplit("_", 1)[1]: sample.value for m in histogram.collect() for sample in m.samples}
    return values["count"], values["sum"]


def test_barge_in_latency_counts_from_the_interrupting_speech():
    metrics = Metrics(slots=1)
    meter = LatencyMeter(metrics)
    meter.speech_started(time.monotonic() - 60)  # an earlier turn
    assert total(metrics.barge_in_latency) == (0, 0)
    meter.interrupted()
    meter.speech_started(time.monotonic() - 0.4)
    count, seconds = total(metrics.barge_in_latency)
    assert count == 1 and 0.4 <= seconds < 5
    meter.speech_started(time.monotonic())
    assert total(metrics.barge_in_latency)[0] == 1
