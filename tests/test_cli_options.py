"""Options that commands share: `cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from speechgpt2.cli.options import with_shared_options


@dataclass(frozen=True)
class Shared:
    source: Annotated[str, typer.Option(help="Where from.")]
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 2


def command_line(*arguments: str):
    app = typer.Typer()

    @app.command()
    @with_shared_options
    def copy(target: Annotated[str, typer.Argument()], shared: Shared, fast: bool = False) -> None:
        """Copy."""
        print(target, shared, fast)

    return CliRunner().invoke(app, arguments)


def test_fields_become_options():
    result = command_line("there", "--source", "here", "--count", "3", "--fast")
    assert result.stdout == "there Shared(source='here', count=3) True\n"


def test_defaults_and_required_fields():
    assert command_line("there", "--source", "here").stdout == "there Shared(source='here', count=2) False\n"
    assert "--source" in command_line("there").output and command_line("there").exit_code == 2
    assert command_line("there", "--source", "here", "--count", "0").exit_code == 2


def test_help_is_that_of_the_command():
    assert all(text in command_line("--help").output for text in ("Copy.", "Where from.", "How many."))
