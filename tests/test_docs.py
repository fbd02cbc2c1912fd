"""Documents against the code: links lead to files; the commands that they show and the names that they give exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from speechgpt2.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "speechgpt2/assets/mini/README.md"])
SCRIPTS = [*PAGES, *sorted((ROOT / "recipes").glob("*.sh"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_PAGES = [ROOT / "docs" / f"{name}.md" for name in ("architecture", "assistant", "engine", "server", "sessions")]
MEMBER = re.compile(r"`([A-Z]\w*)\.(\w+)")
IN_FILE = re.compile(r"`(\w+)(?:\.(\w+))?` in `([\w/]+\.py)`")
COMMAND = re.compile(r"(?:^|`|\(|\s)sg2 ([a-z][^`\n#|]*)")


def relative_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(path), f"{link}: no such heading"


@cache
def sg2() -> Any:
    """The command line as a click command."""
    return typer.main.get_command(app)


def find_command(shown: str) -> Any:
    """The command or group of commands that `shown` begins with; None if there is none."""
    command = sg2()
    for word in takewhile(re.compile(r"[a-z][a-z0-9-]*$").match, shown.rstrip(".,;:) ").split()):
        if not hasattr(command, "commands"):
            return command
        if word not in command.commands:
            return None
        command = command.commands[word]
    return command


def options_of(command: Any) -> set[str]:
    """The options of a command, as they are typed."""
    named = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    return named | {"--help", "-h"}


@pytest.mark.parametrize("page", SCRIPTS, ids=relative_name)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for shown in COMMAND.findall(text):
        command = find_command(shown)
        assert command is not None, f"sg2 {shown}: no such command"
        unknown = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", shown.split("  sg2 ")[0])) - options_of(command)
        assert not unknown, f"sg2 {shown}: no option {unknown}"


def test_commands_are_found():
    """The pattern finds commands in code blocks and in running text."""
    text = "Run `sg2 eval mini --limit 3`.\n    sg2 data clean in -o out   # a comment\n"
    assert [found.strip() for found in COMMAND.findall(text)] == ["eval mini --limit 3", "data clean in -o out"]
    assert find_command("data clean in -o out").name == "clean" and find_command("nonsense") is None
    assert {"-o", "--preset", "--help"} <= options_of(find_command("data clean"))


@cache
def members() -> dict[str, set[str]]:
    """The methods and declared attributes of our classes, by the class's name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "speechgpt2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] |= {
                    part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
                }
                found[node.name] |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    return found


@pytest.mark.parametrize("page", CODE_PAGES, ids=relative_name)
def test_methods_exist(page):
    for owner, member in MEMBER.findall(page.read_text(encoding="utf-8")):
        assert member in members().get(owner, ()), f"{owner}.{member} does not exist"


def test_names_are_in_the_files_that_the_architecture_gives():
    found = IN_FILE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(found) > 10
    for *names, file in found:
        code = (ROOT / "speechgpt2" / file).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"^\s*(?:class|def|async def) {name}\b|^{name}\b.* = ", code, re.M), (
                f"{file} has no {name}"
            )


@pytest.mark.slow
def test_readme_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "What's three plus five? → Three plus five is eight.\n"
    assert (tmp_path / "answer.wav").stat().st_size > 20_000
