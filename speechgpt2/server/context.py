"""The state that the parts of one Realtime session share."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from speechgpt2.duplex.protocol import Dialogue
from speechgpt2.server.events import EventSender
from speechgpt2.server.items import ItemList, new_id
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.response import InputUsage
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.voices import Voices

log = logging.getLogger("sg2.realtime")


class LatencyMeter:
    """Measures the latencies of one session from the user's speech to the model's audio."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._speech_ended_at = self._turn_ended_at = 0.0
        self._barge_in = False

    def speech_started(self, at: float) -> None:
        """The user started to speak at the time `at`. If that stopped a response, `interrupted` was called before."""
        if self._barge_in:
            self._metrics.barge_in_latency.observe(max(0.0, time.monotonic() - at))
            self._barge_in = False

    def speech_stopped(self, at: float) -> None:
        """The user stopped speaking at the time `at`; the end of the turn was detected now."""
        self._speech_ended_at, self._turn_ended_at = at, time.monotonic()

    def first_audio(self) -> None:
        """A response's first audio is sent. Counts once for each spoken turn."""
        if self._speech_ended_at:
            now = time.monotonic()
            self._metrics.time_to_first_audio.observe(max(0.0, now - self._speech_ended_at))
            self._metrics.endpoint_to_first_audio.observe(max(0.0, now - self._turn_ended_at))
            self._speech_ended_at = 0.0

    def interrupted(self) -> None:
        """The user's speech has stopped a response. A call of `speech_started` follows."""
        self._barge_in = True


@dataclass
class SessionContext:
    """The state of a Realtime session that several of its parts use.

    Attributes:
        config: The session's current settings.
        voices: The voices that the session may choose.
        input_usage: The model's input since its last response.
        log_transcripts: Whether the log contains what is said.
    """

    config: SessionConfig
    dialogue: Dialogue
    events: EventSender
    metrics: Metrics
    voices: Voices
    log_transcripts: bool = False
    id: str = field(default_factory=lambda: new_id("sess"))
    items: ItemList = field(default_factory=ItemList)
    input_usage: InputUsage = field(default_factory=InputUsage)
    latency: LatencyMeter = field(init=False)

    def __post_init__(self) -> None:
        self.latency = LatencyMeter(self.metrics)

    def log_transcript(self, message: str, **fields: Any) -> None:
        """Log what was said, if the server is configured to."""
        if self.log_transcripts:
            log.info(message, extra={"fields": {"session": self.id, **fields}})
