"""The voices of the served model, as clients choose them.

    voices = Voices(engine.voices)
    config = voices.resolve(config, "session")       # audio.output.voice is now a voice of the model, or "default"
    warnings = voices.warnings("alloy", "voice")    # OpenAI's own voices: the model's default is used instead

Clients of OpenAI's API name one of OpenAI's voices when their user chooses none, so these are accepted with a warning.
Any other unknown name is an error that lists the model's voices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.server.schema import ProtocolError, shorten
from speechgpt2.server.session_config import DEFAULT_VOICE, SessionConfig

OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
LISTED = 12  # voices in an error message


class Voices:
    """The voices that sessions may choose.

    Args:
        offered: The engine's voices.
    """

    def __init__(self, offered: Sequence[EngineVoice]):
        self.offered = tuple(offered)
        self._names = [voice.name for voice in offered]
        self.default = next((voice.name for voice in offered if voice.default), DEFAULT_VOICE)

    @property
    def choices(self) -> list[str]:
        """The names that a user can choose, the default first; empty if there is nothing to choose."""
        others = [name for name in self._names if name != self.default]
        return [self.default, *others] if others else []

    def pick(self, wanted: str, param: str) -> str:
        """Return the voice to use for the one that a client names in the field `param`.

        Raises:
            ProtocolError: There is no such voice.
        """
        if wanted in self._names:
            return wanted
        if wanted == DEFAULT_VOICE or wanted in OPENAI_VOICES:
            return self.default
        raise ProtocolError(f"There is no voice {shorten(wanted)} here: {self._known}.", "invalid_value", param)

    def resolve(self, config: SessionConfig, path: str) -> SessionConfig:
        """Return a session's settings with the voice to use. `path`: their place in the client's message.

        Raises:
            ProtocolError: There is no such voice.
        """
        return config.with_voice(self.pick(config.audio.output.voice, f"{path}.audio.output.voice"))

    def warnings(self, wanted: Any, param: str) -> list[str]:
        """Return a warning if a client names a voice of OpenAI's, which this model does not have."""
        if isinstance(wanted, Mapping):
            wanted = wanted.get("id")
        if not isinstance(wanted, str) or wanted not in OPENAI_VOICES or wanted in self._names:
            return []
        return [f"{param} has no effect: {self._known}"]

    def warnings_for(self, changes: Mapping[str, Any], path: str) -> list[str]:
        """Return the warnings for a session's settings on the wire, which need not name a voice."""
        value: Any = changes
        for key in ("audio", "output", "voice"):
            value = value.get(key) if isinstance(value, Mapping) else None
        return self.warnings(value, f"{path}.audio.output.voice")

    def to_dicts(self) -> list[dict[str, Any]]:
        """Format the voices for the wire."""
        return [
            {"id": voice.name, "object": "voice", "text": voice.text, "default": voice.name == self.default}
            for voice in self.offered
        ]

    @property
    def _known(self) -> str:
        if not self._names:
            return f"the model has one voice, '{DEFAULT_VOICE}'"
        more = f" and {len(self._names) - LISTED} more" if len(self._names) > LISTED else ""
        return f"the model's voices are {', '.join(self._names[:LISTED])}{more}"
