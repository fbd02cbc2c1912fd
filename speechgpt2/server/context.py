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
from speechgpt2.server.personas import Personas
from speechgpt2.server.response import InputUsage
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.voices import Voices
from speechgpt2.types import Tool

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
        personas: The personas that the session may choose.
        reads_aloud: Whether the model can read a given text.
        hosted_tools: The tools that the server runs for this session.
        id: The session's id.
    """

    config: SessionConfig
    dialogue: Dialogue
    events: EventSender
    metrics: Metrics
    voices: Voices
    log_transcripts: bool = False
    personas: Personas = field(default_factory=Personas)
    reads_aloud: bool = False
    hosted_tools: tuple[Tool, ...] = ()
    id: str = field(default_factory=lambda: new_id("sess"))
    items: ItemList = field(default_factory=ItemList)
    input_usage: InputUsage = field(default_factory=InputUsage)
    latency: LatencyMeter = field(init=False)

    def __post_init__(self) -> None:
        self.latency = LatencyMeter(self.metrics)

    def check_voice(self, voice: str) -> None:
        """Refuse another voice once the model has spoken: it would go on in the voice that its context holds.

        Raises:
            ProtocolError: The voice cannot change any more.
        """
        if voice != self.config.audio.output.voice and self.items.have_assistant_audio:
            raise ProtocolError(
                "Cannot update a conversation's voice if assistant audio is present.",
                "cannot_update_voice",
                "session.audio.output.voice",
            )

    def log_transcript(self, message: str, **fields: Any) -> None:
        """Log what was said, if the server is configured to."""
        if self.log_transcripts:
            log.info(message, extra={"fields": {"session": self.id, **fields}})
