"""Soak test: does a server stay healthy while clients come and go for a long time, half of them misbehaving?

    sg2 bench soak                              # serves mini itself, for half an hour
    sg2 bench soak --minutes 10 --slots 4

Well-behaved clients speak, type, interrupt and request speech; the others reset connections, never read, send invalid
or oversized messages, or a wrong key (load_clients.py). There are more clients than slots. The test checks:

    no slot leaks         in the end all slots are free, and all answer at the same time
    memory is flat        a line fitted through the resident memory after a warm-up
    no client fails       no error event, failed response, wrong close code or traceback in the log
    it drains             after SIGTERM a response ends, then the session closes with 1001, then the process exits
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechgpt2.bench import process
from speechgpt2.bench.load_clients import (
    MISBEHAVING,
    TIMEOUT,
    WELL_BEHAVED,
    LoadTest,
    ServerFault,
    Stats,
    open_session,
    run_client,
    wait_for_close,
    wait_for_event,
    wait_for_response,
)
from speechgpt2.bench.machine import open_console
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column

TITLE = "Soak test: well-behaved and misbehaving clients"
KEY = "a-key-for-the-soak"
EXTRA_CLIENTS = 1  # clients at the same time beyond the number of slots
RELEASE_TIMEOUT = 30.0  # seconds that a slot may stay in use after its client has left
MAX_PAUSE = 4.0  # seconds between one client and the next
MISBEHAVING_SHARE = 0.5
WARM_UP = 1 / 3  # of the time; memory still grows before
MAX_GROWTH = 0.05  # of memory after the warm-up; a flat line may gain as much by chance
EXIT_CODES = (0, -signal.SIGTERM)  # of a process that has drained


@dataclass
class SoakResult:
    """The results.

    Attributes:
        memory: Mean resident memory after the warm-up, in MiB.
        growth: Its slope, in MiB per hour.
        clients_by_kind: Clients by kind.
        failures: What the server did wrong.
        samples: Resident memory over time, as (seconds, MiB).
    """

    minutes: float = column("min", ".0f")
    clients: int = column("clients")
    misbehaving: int = column("bad")
    rejected: int = column("rejected")
    responses: int = column("responses")
    interrupted: int = column("barge-in")
    memory: float = column("MiB", ".0f")
    growth: float = column("MiB/h", "+.0f")
    exit_code: int | None = column("exit", default=None)
    clients_by_kind: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    samples: list[tuple[float, float]] = field(default_factory=list)


def resident_memory(pid: int) -> float:
    """Return the resident memory of a process in MiB.

    Raises:
        UserError: The system has no /proc.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise UserError("the soak test reads memory from /proc, which this system does not have") from None
    return int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024


def memory_trend(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean memory after the warm-up and its slope per hour."""
    seconds, memory = np.array(samples).T
    warm = seconds >= seconds[-1] * WARM_UP
    slope = np.polyfit(seconds[warm], memory[warm], 1)[0]
    return float(memory[warm].mean()), float(slope * 3600)


async def run_clients(test: LoadTest, clients: int, seconds: float) -> None:
    """Run so many clients at a time, one after the other, until the time is over and the last have left."""
    end = time.monotonic() + seconds

    async def run_in_turn() -> None:
        while time.monotonic() < end:
            kinds = MISBEHAVING if test.rng.random() < MISBEHAVING_SHARE else WELL_BEHAVED
            await run_client(test.rng.choice(kinds), test)
            await asyncio.sleep(test.rng.uniform(0, MAX_PAUSE))

    await asyncio.gather(*(run_in_turn() for _ in range(clients)))


async def sample_memory(pid: int, samples: list[tuple[float, float]]) -> None:
    """Record the process's memory every second, until cancelled."""
    began = time.monotonic()
    while True:
        samples.append((time.monotonic() - began, resident_memory(pid)))
        await asyncio.sleep(1.0)


async def wait_for_free_slots(test: LoadTest) -> None:
    """Wait until all sessions have ended.

    Raises:
        ServerFault: Slots stay in use.
    """
    end = time.monotonic() + RELEASE_TIMEOUT
    while used := await asyncio.to_thread(slots_in_use, test.url):
        if time.monotonic() > end:
            raise ServerFault(f"{used} slots are leaked")
        await asyncio.sleep(0.5)


async def check_slots(test: LoadTest, slots: int) -> None:
    """Check that all slots are free and answer at the same time.

    Raises:
        ServerFault: They do not.
    """
    await wait_for_free_slots(test)

    async def ask() -> None:
        async with open_session(test) as (connection, _):
            await connection.send_text("Hello!")
            await wait_for_response(connection)

    results = await asyncio.gather(*(ask() for _ in range(slots)), return_exceptions=True)
    failed = [result for result in results if result is not None]
    if failed:
        raise ServerFault(f"{len(failed)} of {slots} slots do not answer: {failed[0]!r}")


def slots_in_use(url: str) -> int:
    """Return the number of used slots, from `/metrics`.

    Raises:
        UserError: The server has no such metric.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT) as response:
        found = re.search(r"^sg2_slots_in_use ([\d.]+)$", response.read().decode(), re.MULTILINE)
    if found is None:
        raise UserError(f"{url}/metrics has no metric sg2_slots_in_use")
    return int(float(found[1]))


async def check_drain(test: LoadTest, server: process.ServerProcess) -> int:
    """Send SIGTERM in the middle of a response; returns the exit code.

    Raises:
        ServerFault: The response does not end, or the close code is wrong.
    """
    await wait_for_free_slots(test)
    async with open_session(test) as (connection, socket):
        await connection.send_text("Tell me a story.")
        await wait_for_event(connection, "response.output_audio.delta")
        server.process.terminate()
        await wait_for_response(connection)
        await wait_for_close(connection, socket, 1001)
    return await asyncio.to_thread(server.process.wait, process.EXIT_TIMEOUT)


async def show_progress(stats: Stats, seconds: float, console: Console) -> None:
    """Show the results so far, until cancelled."""
    began = time.monotonic()
    with console.status("soak test") as status:
        while True:
            minutes = (time.monotonic() - began) / 60
            counts = f"{sum(stats.clients.values())} clients, {stats.responses} responses"
            status.update(f"{minutes:.0f} of {seconds / 60:.0f} min: {counts}, {len(stats.failures)} failures")
            await asyncio.sleep(1.0)


async def run_soak(server: process.ServerProcess, test: LoadTest, slots: int, seconds: float) -> SoakResult:
    """Run clients for `seconds`, then all checks."""
    samples: list[tuple[float, float]] = []
    background = [
        asyncio.create_task(sample_memory(server.process.pid, samples)),
        asyncio.create_task(show_progress(test.stats, seconds, Console(stderr=True))),
    ]
    await run_clients(test, slots + EXTRA_CLIENTS, seconds)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    stats, exit_code = test.stats, None
    try:
        await asyncio.wait_for(check_slots(test, slots), TIMEOUT)
        exit_code = await asyncio.wait_for(check_drain(test, server), TIMEOUT)
    except (ServerFault, asyncio.TimeoutError, OSError, ConnectionClosed, InvalidStatus) as error:
        stats.failures.append(f"final checks: {error or type(error).__name__}")
    if exit_code is not None and exit_code not in EXIT_CODES:
        stats.failures.append(f"exit code {exit_code}")
    stats.failures += re.findall(r"^.*Traceback.*$|^.*Error: .*$", server.log.read_text(), re.MULTILINE)
    memory, growth = memory_trend(samples)
    if growth * seconds * (1 - WARM_UP) / 3600 > MAX_GROWTH * memory:
        stats.failures.append(f"memory grows by {growth:.0f} MiB per hour")
    misbehaving = sum(stats.clients[client.__name__] for client in MISBEHAVING)
    counts = (sum(stats.clients.values()), misbehaving, stats.rejected, stats.responses, stats.interrupted)
    return SoakResult(seconds / 60, *counts, memory, growth, exit_code, dict(stats.clients), stats.failures, samples)


def main(
    minutes: float = 30.0,
    slots: int = 4,
    model: str = "mini",
    questions: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> SoakResult:
    """Run the soak test against a server in a process of its own; print the results.

    Args:
        minutes: How long clients come and go.
        slots: Slots of the server.
        model: The model to serve.
        questions: A folder of recorded questions.
        seed: Of the clients' random choices.
        out: A JSON file for the results.
        device: Where the server computes.
    """
    console = open_console()
    recordings = load_questions(questions)
    options = ["--model", model, "--slots", str(slots), "--api-key", KEY, "--device", device]
    with process.serve(options, {**os.environ, "SG2_LIMITS_DRAIN_SECONDS": "60"}) as server:
        test = LoadTest(server.url, KEY, recordings, random.Random(seed), Stats())
        result = asyncio.run(run_soak(server, test, slots, minutes * 60))
    report.show(TITLE, [result], console)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(result.clients_by_kind.items()))
    console.print(counts, soft_wrap=not console.is_terminal)
    for failure in result.failures:
        console.print(f"[red]failure:[/red] {failure}", highlight=False)
    if out is not None:
        report.save_json(out, soak=result)
    return result
