"""Personas: who the assistant is, as a YAML file.

    persona = load_persona("storyteller")                 # of the gallery, or the path of a file
    model.conversation("s2s", system=persona.prompt, voice=persona.voice)

The gallery is `assets/personas`. A file of one's own has the same keys; `sg2 persona new` writes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from speechgpt2 import config
from speechgpt2.errors import UserError

GALLERY = Path(__file__).parent / "assets" / "personas"
MAX_PROMPT = 2_000  # characters: each token of the prompt takes a patch of the context
MAX_GREETING = 200


@dataclass(frozen=True)
class PersonaTools:
    """Sources of tools, as on the command line (`assistant.sources.ToolSources`)."""

    functions: str | None = None
    knowledge: str | None = None
    mcp: tuple[str, ...] = ()
    expert: str | None = None
    search: str | None = None


@dataclass(frozen=True)
class Persona:
    """One persona.

    Attributes:
        name: Its name, for people.
        language: The language that it speaks.
        instructions: Who it is and what it does, to the model.
        description: One line, for lists.
        voice: A voice of the model; None for the default.
        greeting: What it says first; None if the user begins.
        style: How it speaks unless it is asked to speak otherwise; added to the instructions.
        tools: The tools that it has.
    """

    name: str
    language: Literal["en", "zh"]
    instructions: str
    description: str = ""
    voice: str | None = None
    greeting: str | None = None
    style: str | None = None
    tools: PersonaTools = field(default_factory=PersonaTools)

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.instructions.strip():
            raise UserError("name and instructions must not be empty")
        if len(self.prompt) > MAX_PROMPT:
            raise UserError(f"instructions and style have {len(self.prompt)} characters; at most {MAX_PROMPT} fit")
        if len(self.greeting or "") > MAX_GREETING:
            raise UserError(f"the greeting has {len(self.greeting or '')} characters; at most {MAX_GREETING} fit")

    @property
    def prompt(self) -> str:
        """The instructions with the style."""
        return "\n".join(part.strip() for part in (self.instructions, self.style) if part)


@cache
def gallery() -> dict[str, Persona]:
    """Return the personas that come with the package, by the names of their files."""
    return {path.stem: config.load(Persona, path) for path in sorted(GALLERY.glob("*.yaml"))}


def load_persona(name: str) -> Persona:
    """Return a persona of the gallery, or that of a file.

    Raises:
        UserError: There is none of this name, or the file is not a persona.
    """
    if name in gallery():
        return gallery()[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return config.load(Persona, name)
    raise UserError(f"no persona {name!r}: give a .yaml file, or one of {', '.join(gallery())}")
