"""`probe` in a process of its own, where a file that crashes or stalls a decoder harms nobody else.

The process reads requests from its standard input and ends with it, so none is left behind by a killed crawler.

    decoder = Decoder()
    sound = await decoder.probe(path, max_hours=12)
    await decoder.close()
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from speechgpt2.data.crawl.probe import Sound, probe
from speechgpt2.data.crawl.verdicts import Rejected

PATIENCE = 1800.0  # seconds for one file; at 200 times real time that is 100 hours of sound


class Decoder:
    """One file at a time, so that a crash is the fault of the file at hand."""

    def __init__(self, patience: float = PATIENCE):
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._busy = asyncio.Lock()

    async def probe(self, path: Path, max_hours: float) -> Sound:
        """As `probe.probe`. Errors: `Rejected`, also where decoding crashes or does not end."""
        async with self._busy:
            try:
                answer = await asyncio.wait_for(self._ask(path, max_hours), self._patience)
            except asyncio.TimeoutError:
                await self._kill()
                raise Rejected("corrupt", f"decoding did not end within {self._patience:g} s") from None
            except BaseException:  # cancelled in the middle: its answer must not be taken for the next one's
                await self._kill()
                raise
            if not answer:
                await self._kill()
                raise Rejected("corrupt", "the decoder crashed on it")
        values = json.loads(answer)
        if "reason" in values:
            raise Rejected(values["reason"], values["detail"])
        return Sound(**values)

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
    """Answer requests, one JSON object a line, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the crawler's to handle
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asdict(probe(Path(request["path"]), request["max_hours"]))
        except Rejected as refusal:
            answer = {"reason": refusal.reason, "detail": refusal.detail}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
