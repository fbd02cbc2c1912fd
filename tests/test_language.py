"""The vocabulary of code and documents: terms of the field, one name per idea, a description of everything public."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "speechgpt2"
FOLDERS = ("speechgpt2", "tests", "docs", "recipes")
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".html", ".css", ".js", ".mjs"}
# Training texts are ordinary English, the changelog quotes old names, and this file quotes what it forbids.
EXEMPT = ("speechgpt2/curriculum/texts", "tests/golden", "tests/test_language.py")


class Rule(NamedTuple):
    """A word to avoid.

    Attributes:
        pattern: a regular expression; it matches at word boundaries, where `_` and digits are boundaries, too.
        instead: the field's word.
        reason: why the word is misleading.
        example: a phrase that the rule must find.
    """

    pattern: str
    instead: str
    reason: str
    example: str


LITERARY = "an old-fashioned word that readers of English as a second language do not know"
PERSON = "software is no household: a metaphor has to be translated before it can be understood"

# In code, comments, docstrings, messages and documents.
WORDS = (
    Rule("whoever", "everyone who, the client that", LITERARY, "whoever listens"),
    Rule("lest", "so that … not", LITERARY, "lest it stops"),
    Rule("bears", "has, supports", LITERARY, "how it bears load"),
    Rule("lives? here", "belongs to, is in", PERSON, "What lives here is slow."),
    Rule("houses?", "project, server, LoadTest", PERSON, "the house's first plan"),
    Rule("let in", "accepted, admitted", PERSON, "Who is let in"),
    Rule("doorkeeper", "Authenticator", PERSON, "the Doorkeeper's list"),
    Rule("who may know", "may import", PERSON, "Who may know whom"),
    Rule("keeps? books", "bookkeeping, cache", PERSON, "A run keeps books."),
    Rule("callers", "sessions, clients", PERSON, "eight callers at once"),
    Rule("speaks? up", "interrupts", "barge-in is an interruption in every API", "the user speaks up"),
    Rule("misheard", "recognition error", "models do not mishear; ASR makes recognition errors", "a misheard word"),
    Rule("rehearsals?", "synthesis aligner", "it aligns a recording to a synthetic reading", "class Rehearsal"),
    Rule("take_?back", "roll back", "speculative work is rolled back", "take_back()"),
)

# In identifiers, as whole words of a name (`hear_audio`, `HearAudio`): in prose they may be what is meant.
NAMES = (
    Rule("guests?", "client", PERSON, "Guest"),
    Rule("callers?", "client, peer", PERSON, "Caller"),
    Rule("hears?|heard|hearing|listened", "append_audio, recognise, detect, transcribe", PERSON, "hear_audio"),
    Rule(
        "sounds|sounded|sound of",
        "audio, recordings, audio_of",
        "the data is audio; a sound is what it may hold",
        "Sounds",
    ),
    Rule("told", "a noun: result, event, prompt", PERSON, "who_was_told"),
    Rule("judged", "checked, decided, evaluated", "people judge; a rule decides and a test checks", "judged_clips"),
    Rule("ears?", "InputAudioBuffer, detector, recogniser", PERSON, "Ear"),
    Rule("loudspeakers?", "speaker, player, playback", "audio APIs say speaker or playback", "Loudspeaker"),
)

# Class names that stand in more than one package, with the reason. Everything else has one meaning in one place.
RECURRING: dict[str, str] = {
    "Engine": "the interface in duplex/protocol.py, and its implementation",
    "Session": "the interface in duplex/protocol.py, and its implementation",
    "Style": "how the assistant speaks (style.py), and how a recorded speaker does (data/record.py)",
}


@cache
def text_files() -> list[Path]:
    """Every file of ours that people read."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    found += [*sorted(ROOT.glob("*.md")), ROOT / "pyproject.toml", ROOT / "Makefile"]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(EXEMPT)]


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def expression(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.IGNORECASE)


@pytest.mark.parametrize("rule", WORDS, ids=lambda rule: rule.pattern)
def test_word_is_not_used(rule):
    wanted = expression(rule.pattern)
    assert wanted.search(rule.example)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        if wanted.search(text_of(path))
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if wanted.search(line)
    ]
    assert not found, f"write {rule.instead} ({rule.reason}):\n" + "\n".join(found)


def words_of(name: str) -> str:
    """The words of an identifier: `snake_case` and `CamelCase` become `snake case` and `camel case`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("_", " ").lower()


@cache
def identifiers(path: Path) -> list[tuple[int, str]]:
    """The names that a module defines, with their lines: classes, functions, arguments, variables, attributes."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            found.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.attr))
    return found


@pytest.mark.parametrize("rule", NAMES, ids=lambda rule: rule.pattern)
def test_name_is_not_used(rule):
    wanted = expression(rule.pattern)
    assert wanted.search(words_of(rule.example))
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in text_files()
        if path.suffix == ".py"
        for line, name in identifiers(path)
        if wanted.search(words_of(name))
    ]
    assert not found, f"use {rule.instead} ({rule.reason}):\n" + "\n".join(found)


def test_words_of_a_name():
    assert words_of("hear_audio") == words_of("HearAudio") == "hear audio"
    assert words_of("InputAudioBuffer2") == "input audio buffer2"


def package_of(path: Path) -> str:
    """The package under speechgpt2/ that a module belongs to; a single file is its own."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_class_names_are_unique():
    """A name that recurs in another package means the same thing there, for a stated reason."""
    packages: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                packages[node.name].add(package_of(path))
    recurring = {name: sorted(where) for name, where in packages.items() if len(where) > 1}
    unexplained = {name: where for name, where in recurring.items() if name not in RECURRING}
    assert not unexplained, f"rename, or explain in RECURRING: {unexplained}"
    outdated = RECURRING.keys() - recurring.keys()
    assert not outdated, f"remove from RECURRING: {outdated}"


def public_definitions(path: Path) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions of a module."""
    for node in tree_of(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("package", sorted({package_of(path) for path in PACKAGE.rglob("*.py")}))
def test_public_definitions_have_docstrings(package):
    """Methods and the form of docstrings are checked by ruff (pyproject.toml)."""
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if package_of(path) == package
        for node in public_definitions(path)
        if not ast.get_docstring(node)
    ]
    assert not missing, "\n".join(missing)
