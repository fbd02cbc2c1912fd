"""A Realtime session on the telephone. The protocols of twilio.py and audiosocket.py carry its audio.

A telephone shows no events: only audio comes and goes. The session is that of OpenAI Realtime all the same, so that
turns, tools and personas work alike.
"""

from __future__ import annotations

import logging
from typing import Any

from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.call_session import CallSession
from speechgpt2.server.messages import ClientMessage, ResponseConfig
from speechgpt2.server.session_config import SessionConfig

log = logging.getLogger("sg2.realtime")


class PhoneSession(CallSession):
    """A Realtime session whose client is a telephone network. See `CallSession`.

    Attributes:
        wire_format: The format of the audio in both directions.
    """

    wire_format: WireFormat

    def input_format(self, config: SessionConfig) -> WireFormat:
        """Return the format of the user's audio, which the network decides."""
        return self.wire_format

    def greet(self) -> None:
        """Begin the talk, if the session's persona has a greeting."""
        persona = self.context.personas.find(self.context.config.persona)
        if persona is not None and persona.greeting is not None:
            self.responses.create(ResponseConfig())

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a message of the network. See `WireSession`."""
        if isinstance(message, Digit):
            log.info("a digit has no effect", extra={"fields": {"session": self.id, "digit": message.digit}})
        else:
            await super().handle_message(message)


class Digit(ClientMessage):
    """A key of the telephone was pressed."""

    digit: str


def log_event(event: dict[str, Any]) -> None:
    """Log an event that a telephone network cannot take, if it is an error."""
    if event["type"] == "error":
        fields = {key: value for key, value in event["error"].items() if value is not None}
        log.warning("an error of a call", extra={"fields": fields})
