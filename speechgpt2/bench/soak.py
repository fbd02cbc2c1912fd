"""Does a server stay well? Guests come and go at random for a long time, and half of them behave badly.

    sg2 bench soak                              # serves mini itself, for half an hour
    sg2 bench soak --minutes 10 --slots 4

Well-behaved guests speak, write, interrupt, have texts read aloud; the others die in the middle of an answer, never
read, send what is no message, 16 MiB in one, a wrong key (guests.py). There are more guests than slots. In the end:

    no slot is lost       all are free again, and all answer at once
    memory is flat        resident memory after a warm-up, a line fitted through it
    nobody is disturbed   no error event, no failed answer, no wrong close code, no traceback in the log
    it leaves properly    SIGTERM in the middle of an answer: that is finished, then code 1001, then the process ends
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
from speechgpt2.bench.guests import FAULTY, HEALTHY, PATIENCE, Book, House, Wrong, closed, ended, line, until, visit
from speechgpt2.bench.machine import warn_if_busy
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column

TITLE = "A server under guests of all kinds"
KEY = "a-key-for-the-soak"
CROWD = 1  # guests more than there are slots
LEFT = 30.0  # seconds that a slot may still be taken after its guest has left
PAUSE = 4.0  # seconds until the next guest takes one's place, at most
FAULTS = 0.5  # share of guests that behave badly
WARM = 1 / 3  # of the time; what a server holds is not yet flat before
GROWTH = 0.05  # of memory that a flat line may still have gained by chance
EXITS = (0, -signal.SIGTERM)  # of a process that has drained


@dataclass
class Soak:
    """How it went. Memory in MiB: after the warm-up, and how much of it was gained per hour from then on."""

    minutes: float = column("min", ".0f")
    guests: int = column("guests")
    faults: int = column("bad")
    refused: int = column("refused")
    answers: int = column("answers")
    interrupted: int = column("cut")
    memory: float = column("MiB", ".0f")
    gained: float = column("MiB/h", "+.0f")
    exit_code: int | None = column("exit", default=None)
    came: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    samples: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB


def resident(pid: int) -> float:
    """Memory of a process that is in use, in MiB. Errors: `UserError` where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise UserError("memory is read from /proc, which this system does not have") from None
    return int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024


def trend(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean memory after the warm-up, and its slope in MiB per hour."""
    seconds, memory = np.array(samples).T
    warm = seconds >= seconds[-1] * WARM
    slope = np.polyfit(seconds[warm], memory[warm], 1)[0]
    return float(memory[warm].mean()), float(slope * 3600)


async def crowd(house: House, guests: int, seconds: float) -> None:
    """So many guests at a time, one after the other, until the time is over and the last have left."""
    end = time.monotonic() + seconds

    async def chair() -> None:
        while time.monotonic() < end:
            kinds = FAULTY if house.rng.random() < FAULTS else HEALTHY
            await visit(house.rng.choice(kinds), house)
            await asyncio.sleep(house.rng.uniform(0, PAUSE))

    await asyncio.gather(*(chair() for _ in range(guests)))


async def watch(pid: int, samples: list[tuple[float, float]]) -> None:
    """Note the process's memory every second."""
    began = time.monotonic()
    while True:
        samples.append((time.monotonic() - began, resident(pid)))
        await asyncio.sleep(1.0)


async def emptied(house: House) -> None:
    """Wait until everyone has left. Errors: `Wrong` if slots are still taken long after that."""
    end = time.monotonic() + LEFT
    while taken := await asyncio.to_thread(taken_slots, house.url):
        if time.monotonic() > end:
            raise Wrong(f"{taken} slots are lost")
        await asyncio.sleep(0.5)


async def all_free(house: House, slots: int) -> None:
    """Errors: `Wrong` if slots are lost, or not all of them answer at once."""
    await emptied(house)

    async def ask() -> None:
        async with line(house) as (talk, _):
            await talk.write("Hello!")
            await ended(talk)

    results = await asyncio.gather(*(ask() for _ in range(slots)), return_exceptions=True)
    failed = [result for result in results if result is not None]
    if failed:
        raise Wrong(f"{len(failed)} of {slots} slots do not answer in the end: {failed[0]!r}")


def taken_slots(url: str) -> int:
    """How many sessions hold a slot, by `/metrics`."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
        found = re.search(r"^sg2_active_slots ([\d.]+)$", answer.read().decode(), re.MULTILINE)
    if found is None:
        raise UserError(f"{url}/metrics tells nothing of slots")
    return int(float(found[1]))


async def leave(house: House, server: process.ServerProcess) -> int:
    """SIGTERM in the middle of an answer; returns the exit code. Errors: `Wrong` if the answer does not end first."""
    await emptied(house)
    async with line(house) as (talk, socket):
        await talk.write("Tell me a story.")
        await until(talk, "response.output_audio.delta")
        server.process.terminate()
        await ended(talk)
        await closed(talk, socket, 1001)
    return await asyncio.to_thread(server.process.wait, process.LEAVING)


async def tell(book: Book, seconds: float, console: Console) -> None:
    """Progress, as long as it goes on."""
    began = time.monotonic()
    with console.status("guests come and go") as status:
        while True:
            passed = (time.monotonic() - began) / 60
            came = sum(book.came.values())
            words = f"{passed:.0f} of {seconds / 60:.0f} min: {came} guests, {book.answers} answers"
            status.update(f"{words}, {len(book.wrong)} wrong")
            await asyncio.sleep(1.0)


async def soak(server: process.ServerProcess, house: House, slots: int, seconds: float) -> Soak:
    """All of it."""
    samples: list[tuple[float, float]] = []
    beside = [watch(server.process.pid, samples), tell(house.book, seconds, Console(stderr=True))]
    tasks = [asyncio.create_task(work) for work in beside]
    await crowd(house, slots + CROWD, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    book, code = house.book, None
    try:
        await asyncio.wait_for(all_free(house, slots), PATIENCE)
        code = await asyncio.wait_for(leave(house, server), PATIENCE)
    except (Wrong, asyncio.TimeoutError, OSError, ConnectionClosed, InvalidStatus) as error:
        book.wrong.append(f"in the end: {error or type(error).__name__}")
    if code is not None and code not in EXITS:
        book.wrong.append(f"exit code {code}")
    book.wrong += re.findall(r"^.*Traceback.*$|^.*Error: .*$", server.log.read_text(), re.MULTILINE)
    memory, gained = trend(samples)
    if gained * seconds * (1 - WARM) / 3600 > GROWTH * memory:
        book.wrong.append(f"memory grows by {gained:.0f} MiB per hour")
    faults = sum(book.came[guest.__name__] for guest in FAULTY)
    counts = (sum(book.came.values()), faults, book.refused, book.answers, book.interrupted)
    return Soak(seconds / 60, *counts, memory, gained, code, dict(book.came), book.wrong, samples)


def main(
    minutes: float = 30.0,
    slots: int = 4,
    model: str = "mini",
    questions: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Soak:
    """Serve `model` in a process of its own and let guests come for so long; `out`: a JSON file."""
    console = Console()
    warn_if_busy(console)
    book = Book()
    recordings = load_questions(questions)
    options = ["--model", model, "--slots", str(slots), "--api-key", KEY]
    with process.served(options, {**os.environ, "SG2_LIMITS_DRAIN_SECONDS": "60"}) as server:
        house = House(server.url, KEY, recordings, random.Random(seed), book)
        result = asyncio.run(soak(server, house, slots, minutes * 60))
    report.show(TITLE, [result], console)
    console.print(", ".join(f"{name} {count}" for name, count in sorted(result.came.items())))
    for words in result.wrong:
        console.print(f"[red]wrong:[/red] {words}", highlight=False)
    if out is not None:
        report.save_json(out, soak=result)
    return result
