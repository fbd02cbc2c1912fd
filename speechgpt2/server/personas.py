"""Personas in a session's settings: a client names one, and the server fills in what it says.

    changes = personas.expand({"persona": "pirate"}, "session")       # with its instructions, voice and style

A persona's instructions come before those that the client sends along. Its greeting is the first response.
"""

from __future__ import annotations

from typing import Any

from speechgpt2.persona import Persona, gallery, load_persona
from speechgpt2.server.schema import ProtocolError, shorten
from speechgpt2.style_requests import styles_in


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
        style = ", ".join(styles_in(persona.style or "")) or None
        return {**_with_output(changes, voice=persona.voice, style=style), "instructions": instructions}

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


def _with_output(changes: dict[str, Any], **values: str | None) -> dict[str, Any]:
    """Add settings of the model's audio, unless the client has named them."""
    audio = changes.get("audio") or {}
    output = (audio.get("output") or {}) if isinstance(audio, dict) else None
    if not isinstance(output, dict):
        return changes  # they are refused later
    added = {key: value for key, value in values.items() if value is not None and output.get(key) is None}
    return {**changes, "audio": {**audio, "output": {**output, **added}}} if added else changes
