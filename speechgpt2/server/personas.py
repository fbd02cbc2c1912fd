"""Personas in a session's settings: a client names one, and the server fills in what it says.

    changes = personas.expand({"persona": "pirate"}, "session")       # with its instructions and voice

A persona's instructions come before those that the client sends along. Its greeting is the first response.
"""

from __future__ import annotations

from typing import Any

from speechgpt2.persona import Persona, gallery, load_persona
from speechgpt2.server.schema import ProtocolError, shorten


class Personas:
    """The personas that clients may name: the gallery, and the one of the server's settings.

    Args:
        chosen: The persona of the server's settings: a name, or a file.

    Raises:
        UserError: There is no such persona.
    """

    def __init__(self, chosen: str | None = None):
        self._offered = dict(gallery())
        self.default = chosen
        if chosen is not None:
            self._offered[chosen] = load_persona(chosen)

    @property
    def choices(self) -> list[str]:
        """The names, the default first."""
        return [*([self.default] if self.default else []), *(name for name in self._offered if name != self.default)]

    def find(self, name: str | None) -> Persona | None:
        """Return a persona by its name."""
        return None if name is None else self._offered.get(name)

    def expand(self, changes: dict[str, Any], path: str) -> dict[str, Any]:
        """Return a client's changes of settings with what the persona that they name says.

        Raises:
            ProtocolError: There is no such persona; names the field below `path`.
        """
        name = changes.get("persona")
        if name is None:
            return changes
        persona = self.find(name) if isinstance(name, str) else None
        if persona is None:
            text = f"There is no persona {shorten(name)}; there are {', '.join(self.choices)}."
            raise ProtocolError(text, "invalid_value", f"{path}.persona")
        own = changes.get("instructions")
        instructions = "\n".join([persona.prompt, *([own] if isinstance(own, str) and own else [])])
        return {**_with_voice(changes, persona.voice), "instructions": instructions}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Format the personas for the wire."""
        return [
            {
                "id": name,
                "object": "persona",
                "name": persona.name,
                "language": persona.language,
                "description": persona.description,
                "greeting": persona.greeting,
                "voice": persona.voice,
                "default": name == self.default,
            }
            for name in self.choices
            if (persona := self.find(name)) is not None
        ]


def _with_voice(changes: dict[str, Any], voice: str | None) -> dict[str, Any]:
    """Add a voice, unless the client has named one."""
    audio = changes.get("audio") or {}
    output = audio.get("output") if isinstance(audio, dict) else None
    if voice is None or not isinstance(audio, dict) or (isinstance(output, dict) and output.get("voice") is not None):
        return changes
    return {**changes, "audio": {**audio, "output": {**(output or {}), "voice": voice}}}
