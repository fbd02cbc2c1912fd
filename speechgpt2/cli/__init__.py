"""`sg2`: everything the package does, from a shell.

This file holds the list of commands and what becomes of errors; the other files hold a few commands each. What a
command needs is imported when it runs, so that `sg2 --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from speechgpt2.cli import (
    codes,
    conversations,
    corpora,
    crawl,
    demo,
    judge,
    models,
    pipeline,
    serve,
    speech,
    talk,
    tour,
    train,
)
from speechgpt2.cli.common import say_error
from speechgpt2.errors import UserError


class Commands(TyperGroup):
    """What a person caused is one line on stderr: exit code 2, or 130 for Ctrl-C. Bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            say_error(str(error))
        except KeyboardInterrupt:
            say_error("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # typer ends in silence: the reader of our output has gone
        except OSError as error:
            say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(2)


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}

GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "train": ("Train a codec or a language model.", {"codec": train.codec, "lm": train.lm}),
    "bench": (
        "Measure speed on this machine.",
        {
            "codec": judge.bench_codec,
            "lm": judge.bench_lm,
            "realtime": serve.bench_realtime,
            "soak": serve.bench_soak,
            "data": judge.bench_data,
        },
    ),
    "eval": ("Judge what a model makes.", {"codec": judge.eval_codec, "mini": judge.eval_mini}),
    "data": (
        "Collect, make and keep speech to learn from.",
        {
            "codec-corpus": corpora.codec_corpus,
            "dialogue-corpus": corpora.dialogue_corpus,
            "crawl": crawl.crawl,
            "takedown": crawl.takedown,
            "clean": pipeline.clean,
            "annotate": pipeline.annotate,
            "rethreshold": pipeline.rethreshold,
            "report": pipeline.report,
            "audit": pipeline.audit,
            "synthesize": conversations.synthesize,
            "demo": tour.demo,
        },
    ),
}

app = typer.Typer(cls=Commands, help="Spoken dialogue in one model: talk, encode, train, judge.", **SETTINGS)
app.command()(speech.chat)
app.command()(speech.say)
app.command()(speech.transcribe)
app.command()(serve.serve)
app.command()(talk.talk)
app.command()(demo.demo)
app.command()(codes.encode)
app.command()(codes.decode)
app.command()(models.info)
app.command()(models.convert)

for name, (help_text, commands) in GROUPS.items():
    group = typer.Typer(help=help_text, **SETTINGS)
    for command_name, command in commands.items():
        group.command(command_name)(command)
    app.add_typer(group, name=name)


def main() -> None:
    """The console script."""
    app()
