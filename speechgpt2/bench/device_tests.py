"""Runs the tests that need a device, if the folder of tests is beside the package, as in a checkout."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt2.errors import UserError
from speechgpt2.eval.report import column

TITLE, FAILURES_TITLE = "Tests on the device", "Failures"
ROOT = Path(__file__).parents[2]
FILES = "tests/**/test_device.py"
RESULT = re.compile(r"^(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b")
REASON = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - (.*))?$")
HANG_SECONDS = 60  # after which pytest shows where a test hangs
THREADS = "2"  # of each process; several with all cores each would wait for one another
KEPT = 20_000  # characters at the end of the output of failing tests that the report keeps


@dataclass(frozen=True)
class FileRow:
    """The tests of one file.

    Attributes:
        ended: Whether all of them ran in time.
        output: The end of pytest's output, if a test failed or did not end.
    """

    file: str = column("file")
    passed: int = column("passed", "d")
    failed: int = column("failed", "d")
    skipped: int = column("skipped", "d")
    ended: bool = column("ended")
    output: str = ""


@dataclass(frozen=True)
class FailureRow:
    """A test that failed, and the first line of the reason."""

    test: str = column("test")
    reason: str = column("reason")


def run(kind: str, seconds: float, root: Path = ROOT, files: str = FILES) -> Iterator[tuple[str, list[Any]]]:
    """Run the tests that need a device of a kind, and yield the rows of each table.

    Each file has a process of its own, all at once: an error on a GPU often breaks all that its process does later.

    Args:
        kind: "cuda", "mps" or "cpu".
        seconds: Time after which tests that still run are ended.
        root: The folder that holds `tests`.
        files: Pattern of the files.

    Raises:
        UserError: There are no tests beside the package, or pytest is not installed.
    """
    paths = sorted(str(path.relative_to(root)) for path in root.glob(files))
    if not paths:
        raise UserError("the tests are not beside the package; run this in a checkout of the repository")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("the tests need pytest: pip install pytest")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{number}.log" for number in range(len(paths))]
        running = [_start(kind, path, root, log) for path, log in zip(paths, logs)]
        ended = [_wait(process, end) for process in running]
        outputs = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    rows = [_row(*found) for found in zip(paths, ended, outputs)]
    yield TITLE, rows
    if failures := [failure for output in outputs for failure in _failures(output)]:
        yield FAILURES_TITLE, failures


def _start(kind: str, path: str, root: Path, log: Path) -> subprocess.Popen[bytes]:
    options = ["-v", "-rfE", "--tb=short", "-o", "addopts=", "-o", f"faulthandler_timeout={HANG_SECONDS}"]
    command = [sys.executable, "-m", "pytest", path, "-m", f"needs_{kind}", "-p", "no:cacheprovider"]
    environ = {"OMP_NUM_THREADS": THREADS, **os.environ}
    with log.open("wb") as out:
        return subprocess.Popen([*command, *options], cwd=root, env=environ, stdout=out, stderr=subprocess.STDOUT)


def _wait(process: subprocess.Popen[bytes], end: float) -> bool:
    """Wait for a process until `end`, then end it. Returns whether it has ended by itself."""
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return process.returncode in (0, 1)  # other codes: no test was found, or pytest itself failed


def _row(path: str, ended: bool, output: str) -> FileRow:
    results = [match[2] for line in output.splitlines() if (match := RESULT.match(line))]
    failed = results.count("FAILED") + results.count("ERROR")
    kept = "" if ended and not failed else output[-KEPT:]
    return FileRow(path, results.count("PASSED"), failed, results.count("SKIPPED"), ended, kept)


def _failures(output: str) -> list[FailureRow]:
    """Return the failures of pytest's summary; of tests that were ended, which have none, those that failed before."""
    found = {match[1]: match[2] or "" for line in output.splitlines() if (match := REASON.match(line))}
    for line in output.splitlines():
        if (match := RESULT.match(line)) and match[2] in ("FAILED", "ERROR"):
            found.setdefault(match[1], "")
    return [FailureRow(test, reason) for test, reason in found.items()]
