"""A server in a process of its own, started as a user starts it, to be measured from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechgpt2.errors import UserError

SG2 = "from speechgpt2.cli import main; main()"
EXIT_TIMEOUT = 60.0  # seconds that a server may take to exit


@dataclass
class ServerProcess:
    """A running `sg2 serve`: its address, its process, and the file with its log."""

    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def serve(options: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """Run `sg2 serve` on a free port while the block runs.

    Raises:
        UserError: It does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [sys.executable, "-c", SG2, "serve", "--port", "0", *options]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True, env=environ)
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if not found:
                raise UserError(f"the server did not start: {log.read_text().strip().splitlines()[-1:]}")
            yield ServerProcess(found[0].rstrip("/"), process, log)
        finally:
            process.terminate()
            try:
                process.wait(EXIT_TIMEOUT)
            finally:
                process.kill()
                process.stdout.close()
