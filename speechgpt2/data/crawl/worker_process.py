"""Untrusted input is read in a process of its own: one that crashes, stalls or holds the interpreter is replaced.

The process reads requests from its standard input and ends with it, so a killed crawler leaves none behind.

    class ProbeProcess(WorkerProcess): ...      # asks: `await self.ask(request)`
    serve(answer)                               # in the process: `python -m MODULE`
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from speechgpt2.data.crawl.item_errors import ItemRejected

LONGEST_LINE = 1 << 28  # bytes of an answer


class WorkerProcess:
    """Answers one request at a time, so that a crash is caused by that request.

    Args:
        module: The module that the process runs.
        timeout: Seconds for an answer.
        reason: Of the rejection, if there is no answer.
    """

    def __init__(self, module: str, timeout: float, reason: str):
        self._module, self._timeout, self._reason = module, timeout, reason
        self._process: asyncio.subprocess.Process | None = None
        self._busy = asyncio.Lock()

    async def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to a request, both JSON. Raises `ItemRejected` also if there is none in time."""
        async with self._busy:
            try:
                line = await asyncio.wait_for(self._exchange(request), self._timeout)
            except asyncio.TimeoutError:
                await self._kill()
                raise ItemRejected(self._reason, f"reading it did not end within {self._timeout:g} s") from None
            except BaseException:  # cancelled: the next request must not read this one's answer
                await self._kill()
                raise
            if not line:
                await self._kill()
                raise ItemRejected(self._reason, "what reads it crashed")
        answer = json.loads(line)
        if "rejected" in answer:
            raise ItemRejected(*answer["rejected"])
        return answer["answer"]

    async def close(self) -> None:
        """End the process."""
        async with self._busy:
            await self._kill()

    async def _exchange(self, request: dict[str, Any]) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, limit=LONGEST_LINE,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            return await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return b""

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer requests, one JSON object per line, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the crawler handles Ctrl-C
    for line in sys.stdin:
        try:
            answered = {"answer": answer(json.loads(line))}
        except ItemRejected as rejection:
            answered = {"rejected": [rejection.reason, rejection.detail]}
        print(json.dumps(answered), flush=True)
