"""`sg2`: everything the package does, from a shell.

This file lists the commands and turns errors into messages; each other file holds the commands of its name. A command
imports what it needs when it runs, so that `sg2 --help` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from speechgpt2.cli import (
    bench,
    chat,
    checkpoint,
    codec,
    demo,
    greeting,
    kb,
    persona,
    serve,
    sessions,
    talk,
    train,
    transcribe,
)
from speechgpt2.cli import eval as evaluation
from speechgpt2.cli.common import print_error, show_warnings
from speechgpt2.cli.data import corpus, crawl, pipeline, synthesize
from speechgpt2.cli.data import demo as data_demo
from speechgpt2.errors import UserError


class CommandGroup(TyperGroup):
    """Prints a user's mistake as one line on stderr and exits with 2, or 130 for Ctrl-C. Bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        show_warnings()
        try:
            return super().invoke(ctx)
        except UserError as error:
            print_error(str(error))
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # the reader of our output has gone; typer exits without a message
        except OSError as error:
            print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(2)


# Markdown keeps square brackets in help texts, which rich's own markup drops, and wraps paragraphs as a whole.
SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

COMMANDS: dict[str, Callable[..., None]] = {
    "chat": chat.chat,
    "say": chat.say,
    "transcribe": transcribe.transcribe,
    "serve": serve.serve,
    "talk": talk.talk,
    "demo": demo.demo,
    "encode": codec.encode,
    "decode": codec.decode,
    "info": checkpoint.info,
    "convert": checkpoint.convert,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "train": (
        "Train a codec or a language model, and plan and inspect runs.",
        {"codec": train.codec, "lm": train.lm, "show": train.show, "plan": train.plan},
    ),
    "bench": (
        "Measure speed on this machine.",
        {
            "codec": bench.codec,
            "lm": bench.lm,
            "train": bench.train,
            "device": bench.device,
            "realtime": bench.realtime,
            "soak": bench.soak,
            "data": bench.data,
            "voices": bench.voices,
            "kb": bench.kb,
            "grammar": bench.grammar,
            "styles": bench.styles,
        },
    ),
    "eval": (
        "Evaluate a codec, a model's speech, or a whole model on held-out data.",
        {
            "codec": evaluation.codec,
            "speech": evaluation.speech,
            "mini": evaluation.mini,
            "transcription": evaluation.transcription,
            "precision": evaluation.precision,
        },
    ),
    "greeting": ("Make greetings, which are a model's voices.", {"make": greeting.make}),
    "persona": ("Who the assistant is.", {"list": persona.show_list, "new": persona.new, "try": persona.try_out}),
    "sessions": (
        "Saved sessions of `sg2 chat --sessions` and `sg2 serve --sessions`.",
        {
            "list": sessions.show_list,
            "show": sessions.show,
            "export": sessions.export,
            "delete": sessions.delete,
            "replay": sessions.replay,
        },
    ),
    "kb": (
        "Keep a knowledge base of documents that the assistant can search.",
        {
            "add": kb.add,
            "list": kb.show_list,
            "search": kb.search,
            "embed": kb.embed,
            "remove": kb.remove,
            "info": kb.info,
        },
    ),
    "data": (
        "Collect, synthesize, clean and label speech.",
        {
            "codec-corpus": corpus.codec_corpus,
            "dialogue-corpus": corpus.dialogue_corpus,
            "crawl": crawl.crawl,
            "takedown": crawl.takedown,
            "clean": pipeline.clean,
            "annotate": pipeline.annotate,
            "rethreshold": pipeline.rethreshold,
            "report": pipeline.report,
            "audit": pipeline.audit,
            "synthesize": synthesize.synthesize,
            "demo": data_demo.demo,
        },
    ),
}

app = typer.Typer(cls=CommandGroup, **{**SETTINGS, "add_completion": True})


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"speechgpt2 {version('speechgpt2')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Open real-time spoken dialogue: talk, serve, encode, train, evaluate."""


for name, command in COMMANDS.items():
    app.command(name)(command)
for name, (help_text, commands) in GROUPS.items():
    group = typer.Typer(help=help_text, **SETTINGS)
    for command_name, command in commands.items():
        group.command(command_name)(command)
    app.add_typer(group, name=name)


def main() -> None:
    """Run `sg2`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows a question mark for an arrow
    app()
