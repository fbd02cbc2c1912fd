"""The suite on a machine without Debian's tools: tests that need one are skipped, and nothing fails."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

TESTS = Path(__file__).parent
PROGRAMS = {
    "c2dec",
    "c2enc",
    "chromium",
    "espeak",
    "espeak-ng",
    "festival",
    "ffmpeg",
    "ffprobe",
    "flite",
    "google-chrome",
}
LIBRARIES = ("libespeak-ng.so.1", "libflite.so.1")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The environment without the tools: their programs are not on PATH, their libraries cannot be loaded."""
    folder = tmp_path_factory.mktemp("bare")
    programs, libraries = folder / "bin", folder / "lib"
    programs.mkdir()
    libraries.mkdir()
    for path in os.environ["PATH"].split(os.pathsep):
        for program in Path(path).iterdir() if Path(path).is_dir() else ():
            if program.name not in PROGRAMS and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    for name in LIBRARIES:  # the loader takes the first file of that name, and an empty one is no library
        (libraries / name).touch()
    environ = {key: value for key, value in os.environ.items() if key != needs.WITHOUT}
    return {**environ, "PATH": str(programs), "LD_LIBRARY_PATH": str(libraries)}


def run(bare, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=bare, capture_output=True, text=True, timeout=900)


def test_whole_suite_is_collected(bare):
    done = run(bare, "--collect-only", "-m", "slow or not slow")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_tests_that_need_a_tool_are_skipped(bare):
    done = run(bare, "-rs", "tests/demo", "tests/asr/test_pocketsphinx.py", "tests/tts/test_voices.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "needs flite (Debian: apt install flite)" in done.stdout


def test_only_the_helper_skips():
    """A skip says what the test needs through `needs`, in one wording."""
    for path in set(TESTS.rglob("*.py")) - {TESTS / "needs.py", TESTS / "conftest.py"}:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & {"skip", "skipif", "importorskip"}
        assert not found, f"{path}: use tests/needs.py"


def test_hidden_tool_is_missing(monkeypatch):
    monkeypatch.delenv(needs.WITHOUT, raising=False)
    monkeypatch.setitem(needs.TOOLS, "there", lambda: True)
    assert needs.present("there")
    for names in ("there", "ffmpeg, there", "all"):
        monkeypatch.setenv(needs.WITHOUT, names)
        assert not needs.present("there")
    monkeypatch.setenv(needs.WITHOUT, "ffmpeg")
    assert needs.present("there")
