"""`probe` in a process of its own, so that a file that crashes or stalls a decoder does no other harm.

process = ProbeProcess()
audio = await process.probe(path, max_hours=12)
await process.close()
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from speechgpt2.data.crawl.probe import ProbedAudio, probe
from speechgpt2.data.crawl.worker_process import WorkerProcess, serve

PROBE_TIMEOUT = 1800.0  # seconds for one file; at 200 times real time that is 100 hours of audio


class ProbeProcess(WorkerProcess):
    """Probes files."""

    def __init__(self, timeout: float = PROBE_TIMEOUT):
        super().__init__("speechgpt2.data.crawl.probe_process", timeout, "corrupt")

    async def probe(self, path: Path, max_hours: float) -> ProbedAudio:
        """Probe a file like `probe.probe`. Raises `ItemRejected` also if decoding crashes or does not end."""
        return ProbedAudio(**await self.ask({"path": str(path), "max_hours": max_hours}))


if __name__ == "__main__":
    serve(lambda request: asdict(probe(Path(request["path"]), request["max_hours"])))
