"""`probe` in a process of its own, so that a file that crashes or stalls a decoder does no other harm.

The process reads requests from its standard input and ends with it, so a killed crawler leaves none behind.

    process = ProbeProcess()
    audio = await process.probe(path, max_hours=12)
    await process.close()
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.probe import ProbedAudio, probe

PROBE_TIMEOUT = 1800.0  # seconds for one file; at 200 times real time that is 100 hours of audio


class ProbeProcess:
    """Probes one file at a time, so that a crash is caused by that file."""

    def __init__(self, timeout: float = PROBE_TIMEOUT):
        self._timeout = timeout
        self._process: asyncio.subprocess.Process | None = None
        self._busy = asyncio.Lock()

    async def probe(self, path: Path, max_hours: float) -> ProbedAudio:
        """Probe a file like `probe.probe`. Raises `ItemRejected` also if decoding crashes or does not end."""
        async with self._busy:
            try:
                answer = await asyncio.wait_for(self._ask(path, max_hours), self._timeout)
            except asyncio.TimeoutError:
                await self._kill()
                raise ItemRejected("corrupt", f"decoding did not end within {self._timeout:g} s") from None
            except BaseException:  # cancelled: the next request must not read this one's answer
                await self._kill()
                raise
            if not answer:
                await self._kill()
                raise ItemRejected("corrupt", "the decoder crashed on the file")
        values = json.loads(answer)
        if "reason" in values:
            raise ItemRejected(values["reason"], values["detail"])
        return ProbedAudio(**values)

    async def close(self) -> None:
        """End the process."""
        async with self._busy:
            await self._kill()

    async def _ask(self, path: Path, max_hours: float) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"path": str(path), "max_hours": max_hours}).encode() + b"\n")
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


def serve() -> None:
    """Answer requests, one JSON object per line, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the crawler handles Ctrl-C
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asdict(probe(Path(request["path"]), request["max_hours"]))
        except ItemRejected as rejection:
            answer = {"reason": rejection.reason, "detail": rejection.detail}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
