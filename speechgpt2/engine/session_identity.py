"""What identifies an engine's models in saved sessions, and which sessions it can resume."""

from __future__ import annotations

from functools import cached_property

from speechgpt2.codec.model import Codec
from speechgpt2.conversation import Fingerprints, check_same_model, fingerprints, session_header
from speechgpt2.engine.config import EngineConfig
from speechgpt2.errors import UserError
from speechgpt2.lm.model import SpeechLM
from speechgpt2.sessions.entries import Header, SavedSession


class SessionIdentity:
    """The identity of an engine in saved sessions.

    Args:
        codec: The codec.
        lm: The language model.
        config: The engine's configuration.
    """

    def __init__(self, codec: Codec, lm: SpeechLM, config: EngineConfig):
        self._codec, self._lm, self._config = codec, lm, config

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of the models."""
        return fingerprints(self._codec, self._lm)

    def header(self, id: str, model: str, owner: str) -> Header:
        """Return the first line of a session. For the arguments see `Header`."""
        sizes = {"slots": self._config.slots, "context": self._config.context}
        return session_header(id, "engine", model, owner, self.fingerprints, self._lm, **sizes)

    def check(self, saved: SavedSession) -> None:
        """Check that a saved session can be resumed.

        Raises:
            UserError: Another model made it, or it does not fit into the context.
        """
        check_same_model(saved.header, "engine", self.fingerprints)
        count, limit = len(saved.context.text), self._config.context
        if count > limit:
            raise UserError(f"session {saved.header.id} has a context of {count} patches; this engine holds {limit}")
