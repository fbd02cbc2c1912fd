"""Runs `sg2` in the process of a test."""

from typer.testing import CliRunner

from speechgpt2.cli import app


def sg2(*arguments, code=0):
    """Run a command, which must exit with `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fails(*arguments):
    """Return the one line of error of a command that exits with 2."""
    result = sg2(*arguments, code=2)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
