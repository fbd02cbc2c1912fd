"""What an operator watches, for Prometheus; and logs as JSON lines that hold no words and no sound.

All times in seconds. `sg2_step_seconds` against `sg2_step_budget_seconds` tells how near the engine is to falling
behind: a step makes 120 ms of everyone's speech.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WAITS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
STEPS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.5)
BUDGET = 0.12  # of a step: the speech that it makes


class Metrics:
    """One server's, in a registry of their own."""

    def __init__(self, slots: int):
        self.registry = CollectorRegistry()

        def histogram(name: str, words: str, buckets: tuple[float, ...] = WAITS) -> Histogram:
            return Histogram(f"sg2_{name}", words, buckets=buckets, registry=self.registry)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"sg2_{name}", words, labels, registry=self.registry)

        self.active = Gauge("sg2_active_slots", "Sessions that hold a slot", registry=self.registry)
        Gauge("sg2_slots", "Slots in all", registry=self.registry).set(slots)
        Gauge("sg2_step_budget_seconds", "Speech that a step makes", registry=self.registry).set(BUDGET)
        self.steps = histogram("step_seconds", "A step of the engine", STEPS)
        self.first_audio = histogram("first_audio_seconds", "End of speech to the first sound of the answer")
        self.endpoint = histogram("endpoint_first_audio_seconds", "End of the turn to the first sound of the answer")
        self.barge_in = histogram("barge_in_seconds", "The user speaks up to the last sound of the answer sent")
        self.underruns = counter("underruns", "Answers' chunks that came after the listener ran dry")
        self.rejections = counter("rejections", "Who was not let in", "reason")
        self.responses = counter("responses", "Answers by how they ended", "status")
        self.errors = counter("errors", "Error events by code", "code")
        self.closed = counter("closed_sessions", "Sessions by close code", "code")

    def exposition(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A log record as one JSON object; `extra={"fields": {…}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(as_json: bool) -> None:
    """Send the server's logs to stderr; of others' only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    logging.getLogger("sg2").setLevel(logging.INFO)


class Lines(logging.Formatter):
    """A log record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = getattr(record, "fields", {})
        return super().format(record) + "".join(f" {key}={value}" for key, value in fields.items())
