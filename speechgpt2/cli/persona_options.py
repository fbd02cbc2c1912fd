"""What a persona means for commands: its option, its tools, its greeting, its style."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.assistant.sources import ToolSources
    from speechgpt2.chat import Conversation, SpeechGPT
    from speechgpt2.persona import Persona
    from speechgpt2.style import Style

PersonaName = Annotated[
    str | None,
    typer.Option("--persona", help="Who the assistant is: a name (sg2 persona list) or a .yaml file.", metavar="NAME"),
]
StyleNames = Annotated[
    str | None,
    typer.Option(
        "--style",
        help="How the assistant speaks: faster, slower, louder, softer, higher, lower, whisper, happy, sad, angry or "
        "calm; several with commas between them.",
        metavar="STYLE",
    ),
]
Speed = Annotated[
    float,
    typer.Option(
        min=0.25, max=4.0, help="How many times as fast as usual the assistant speaks, at its pitch.", metavar="X"
    ),
]
SessionSpeed = Annotated[
    float | None,
    typer.Option(
        min=0.25, max=1.5, help="How many times as fast as usual the assistant speaks, at its pitch.", metavar="X"
    ),
]


def read_style(names: str | None, persona: Persona | None = None) -> Style:
    """Return the style that a command names, or else that of its persona.

    Raises:
        UserError: There is no such style.
    """
    from speechgpt2.style import NORMAL, parse_style
    from speechgpt2.style_requests import styles_in

    described = "" if persona is None else ", ".join(styles_in(persona.style or ""))
    return parse_style(names or described or NORMAL.name)


def read_persona(name: str | None) -> Persona | None:
    """Return the persona of that name, if one is named."""
    from speechgpt2.persona import load_persona

    return None if name is None else load_persona(name)


def with_tools(sources: ToolSources, persona: Persona | None) -> ToolSources:
    """Add a persona's sources of tools where the command names none of their kind."""
    if persona is None:
        return sources
    own = persona.tools
    functions, knowledge = (None if path is None else Path(path) for path in (own.functions, own.knowledge))
    return replace(
        sources,
        functions=sources.functions or functions,
        knowledge=sources.knowledge or knowledge,
        mcp=(*sources.mcp, *own.mcp),
        expert=sources.expert or own.expert,
        search=sources.search or own.search,
    )


def greet(speechgpt: SpeechGPT, conversation: Conversation, persona: Persona | None, play: bool) -> list[np.ndarray]:
    """Have the persona open the conversation, aloud if its answers are spoken and the model can read aloud.

    Args:
        speechgpt: The models.
        conversation: The conversation, which has not begun.
        persona: The persona, if there is one.
        play: Whether to play it.

    Returns:
        The greeting's `pcm [N]`, if it has audio.
    """
    from speechgpt2.cli.audio_devices import BlockingPlayer
    from speechgpt2.types import Speech, Turn

    if persona is None or persona.greeting is None:
        return []
    print(f"sg2: {persona.greeting}", flush=True)
    if not conversation.speak or not speechgpt.lm.prompt.template.chain_of_modality:
        conversation.add(Turn.assistant(persona.greeting))
        return []
    style, speed = conversation.style.style, conversation.style.speed
    reply = speechgpt.say(persona.greeting, voice=persona.voice, style=style, speed=speed)
    conversation.add(Turn("assistant", (Speech(codes=reply.codes, text=persona.greeting),)))
    if play:
        with BlockingPlayer() as player:
            player.play(reply.pcm)
    return [reply.pcm]
