"""`sg2 persona`: who the assistant is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechgpt2.cli.common import ModelName, check_suffix, print_table
from speechgpt2.errors import UserError

TEMPLATE = """\
# A persona: sg2 persona try {file}
name: {name}
language: {language} # en or zh
description: {description} # one line, for lists
instructions: |
{instructions}
greeting: {greeting} # what it says first; null if the user begins
style: {style} # how it speaks, unless it is asked to speak otherwise
voice: {voice} # a voice of the model (--voice); null for its default
tools: {{}} # mcp: [ADDRESS], search: ENGINE, expert: NAME@URL, knowledge: FILE, functions: FILE.py
"""
QUESTIONS = {"en": "Who are you?", "zh": "你是谁？"}


def show_list() -> None:
    """List the personas that come with the package."""
    from speechgpt2.persona import gallery

    rows = [(name, p.language, p.name, p.description) for name, p in gallery().items()]
    print_table(("name", "language", "who", "what"), rows)


def new(
    file: Annotated[Path, typer.Argument(help="The .yaml file to write.", metavar="FILE")],
    like: Annotated[str, typer.Option(help="The persona of the gallery to begin with.", metavar="NAME")] = "assistant",
) -> None:
    """Write a persona to edit, with a comment on each key."""
    from speechgpt2 import hub
    from speechgpt2.persona import load_persona

    check_suffix(file, ".yaml", ".yml")
    if file.exists():
        raise UserError(f"{file} exists already")
    persona = load_persona(like)
    instructions = "\n".join(f"  {line}" for line in persona.instructions.strip().splitlines())
    values = {name: scalar(getattr(persona, name)) for name in ("name", "description", "greeting", "style", "voice")}
    text = TEMPLATE.format(file=file, language=persona.language, instructions=instructions, **values)
    hub.write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    print(file)


def scalar(text: str | None) -> str:
    """Return a YAML scalar on one line."""
    import json

    return "null" if text is None else json.dumps(text, ensure_ascii=False)


def try_out(
    persona: Annotated[str, typer.Argument(help="A name of sg2 persona list, or a .yaml file.", metavar="NAME")],
    texts: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A typed question (repeatable).", metavar="TEXT")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .wav or .flac file for greeting and answers.", metavar="FILE")
    ] = None,
    mode: Annotated[Literal["t2s", "t2t"] | None, typer.Option(help="Speech (s) or text (t) of the answers.")] = None,
    model: ModelName = "mini",
) -> None:
    """Talk to a persona: it greets, and answers a question."""
    from speechgpt2.cli.chat import chat
    from speechgpt2.cli.options import LoadOptions, SamplingOptions
    from speechgpt2.persona import load_persona

    questions = texts or [QUESTIONS[load_persona(persona).language]]
    shared = {**asdict(SamplingOptions()), **asdict(LoadOptions())}
    chat(texts=questions, out=out, mode=mode, model=model, persona=persona, **shared)
