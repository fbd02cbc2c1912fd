"""What a device gives, in minutes: its speed, whether it computes what the CPU computes, and the engine's steps on it.

    sg2 bench device --minutes 8 -o device.json                    # the released 7B's sizes, random weights
    sg2 bench device --device cpu --model tiny -n 1 -n 2           # the same on a CPU, in a minute

Parts run in the order of their importance, each in a process of its own, because an error on a GPU often breaks a whole
process, and one that hangs can be ended. What a part has measured is written at once, and printed when the part is
over. A part that fails, or for which too little time is left, is a line, and the others go on.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from speechgpt2 import hub
from speechgpt2.bench import device_engine, device_parity, device_tests
from speechgpt2.bench.device_engine import EngineTest
from speechgpt2.bench.device_models import LARGE, PRECISION
from speechgpt2.bench.machine import measure, open_console, times
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.nn.quantized import KINDS

Tables = Iterator[tuple[str, list[Any]]]  # titles with rows

MACHINE_TITLE = "Machine"
SESSIONS = (1, 16, 64, 256)
GROUPS = ("machine", "tests", "parity", "sessions", *KINDS)  # what can be chosen
RESERVE = 5.0  # seconds that a part keeps of its time, to end by itself before it is ended
LAUNCHES = 500  # small operations whose time is measured
GPU_SIZES, GPU_MEGABYTES = (2048, 8192), 4096  # of the products and of the array that is read
CPU_SIZES, CPU_MEGABYTES = (384, 1536), 384


@dataclass(frozen=True)
class Setup:
    """What is measured, and how much of it.

    Attributes:
        model: Sizes of random weights (`device_models.sizes`), or a model.
        codec: The codec, if it is not in the model's folder.
        device: Where it runs.
        context: Patches that each session remembers.
        steps: Steps of each kind that are timed.
        turns: Spoken turns whose first audio is timed.
        question_seconds: Their length.
        samples: The models of the part `parity`.
        machine: What the part `machine` has measured.
    """

    model: str = LARGE
    codec: str | None = None
    device: str = "cpu"
    context: int = 1024
    steps: int = 40
    turns: int = 3
    question_seconds: float = 2.0
    samples: tuple[str, ...] = ("random", "mini")
    machine: MachineRow | None = None

    @property
    def kind(self) -> str:
        """The kind of the device."""
        return torch.device(self.device).type

    def engine_test(self, sessions: int, weights: str, seconds: float) -> EngineTest:
        """Return the measurement of an engine; of a quantized model only steps are timed."""
        known = self.machine
        return EngineTest(
            model=self.model,
            codec=self.codec,
            device=self.device,
            sessions=sessions,
            weights=weights,
            context=self.context,
            prompt=self.context // 8,
            steps=self.steps,
            turns=0 if weights in KINDS else self.turns,
            question_seconds=self.question_seconds,
            seconds=seconds,
            bandwidth=math.nan if known is None else known.gigabytes_per_second * 1e9,
            products=math.nan if known is None else known.bfloat16 * 1e12,
        )


@dataclass(frozen=True)
class MachineRow:
    """A device.

    Attributes:
        memory_gb: Its memory; nan if unknown.
        gigabytes_per_second: Measured reading.
        float32: Measured 10¹² operations per second of large products.
        bfloat16: The same in bfloat16.
        launch_us: Time of one small operation among many.
        torch: PyTorch's version, with that of CUDA.
    """

    name: str = column("device")
    memory_gb: float = column("GB", ".1f")
    gigabytes_per_second: float = column("reads GB/s", ",.0f")
    float32: float = column("float32, TFLOP/s", ",.2f")
    bfloat16: float = column("bfloat16", ",.2f")
    launch_us: float = column("small operation, µs", ".1f")
    torch: str = column("PyTorch")


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: Its name in messages and in the report.
        group: The name by which it is chosen, one of `GROUPS`.
        run: Measures, in so many seconds; yields rows with the title of their table.
        least: Seconds without which it is not begun.
        most: Seconds after which it is ended.
        isolated: Whether it needs a process of its own.
    """

    name: str
    group: str
    run: Callable[[Setup, float], Tables]
    least: float
    most: float
    isolated: bool = True


@dataclass
class PartResult:
    """What became of a part.

    Attributes:
        status: "running", "done", "failed" or "skipped".
        reason: Why it is not done, in one line.
        seconds: How long it took.
        trace: The traceback of a failure.
        tables: Rows by the title of their table, those of a part that failed later included.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    trace: str = ""
    tables: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionsPart:
    """Measures an engine of so many sessions."""

    sessions: int
    weights: str = PRECISION

    def __call__(self, setup: Setup, seconds: float) -> Tables:
        """Yield the rows of each table."""
        return device_engine.run(setup.engine_test(self.sessions, self.weights, seconds))


def parts(sessions: Sequence[int] = SESSIONS, groups: Sequence[str] = GROUPS) -> list[Part]:
    """Return the parts in the order of their importance.

    Args:
        sessions: Sessions of the engines that are measured.
        groups: Those of `GROUPS` that are wanted.

    Raises:
        UserError: A group is unknown.
    """
    if unknown := set(groups) - set(GROUPS):
        raise UserError(f"unknown part {', '.join(sorted(unknown))}; one of {', '.join(GROUPS)}")
    engines = [
        Part(f"{count} session{'s' if count > 1 else ''}", "sessions", SessionsPart(count), 25, 120)
        for count in sorted(set(sessions))
    ]
    quantized = [Part(f"{kind}, 1 session", kind, SessionsPart(1, kind), 20, 60) for kind in KINDS]
    found = [
        Part("machine", "machine", run_machine, 5, 60),
        Part("tests", "tests", run_tests, 20, 150, isolated=False),
        Part("parity", "parity", run_parity, 15, 90),
        *engines,
        *quantized,
    ]
    return [part for part in found if part.group in groups]


def run_machine(setup: Setup, seconds: float) -> Tables:
    """Measure the device itself."""
    on_gpu = setup.kind == "cuda"
    sizes, megabytes = (GPU_SIZES, GPU_MEGABYTES) if on_gpu else (CPU_SIZES, CPU_MEGABYTES)
    threads = torch.get_num_threads()
    measured = measure(threads, sizes, megabytes, device=setup.device)
    block = torch.zeros(8, device=setup.device)

    def small_operations() -> None:
        for _ in range(LAUNCHES):
            block.add_(1)

    launch = min(times(small_operations, 3, setup.device)) / LAUNCHES
    name, memory, version = f"CPU, threads: {threads}", math.nan, torch.__version__
    if on_gpu:
        properties = torch.cuda.get_device_properties(torch.device(setup.device))
        name, memory = properties.name, properties.total_memory / 1e9
    elif setup.kind != "cpu":
        name = setup.device
    flops = (measured.flops["float32"] / 1e12, measured.flops["bfloat16"] / 1e12)
    yield MACHINE_TITLE, [MachineRow(name, memory, measured.bandwidth / 1e9, *flops, 1e6 * launch, version)]


def run_tests(setup: Setup, seconds: float) -> Tables:
    """Run the tests that need the device."""
    return device_tests.run(setup.kind, seconds)


def run_parity(setup: Setup, seconds: float) -> Tables:
    """Compare what the device computes with what the CPU computes."""
    return device_parity.run(torch.device(setup.device), setup.samples)


def one_line(error: BaseException) -> str:
    """Return what went wrong as one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _serve(connection: Connection, part: Part, setup: Setup, seconds: float) -> None:
    """Run a part in a process of its own."""
    for message in _messages(part, setup, seconds):
        connection.send(message)


def _messages(part: Part, setup: Setup, seconds: float) -> Iterator[tuple[str, Any, Any]]:
    """Yield what a part has measured, row by row: ("rows", title, rows), or at last ("failed", reason, traceback)."""
    try:
        for title, rows in part.run(setup, seconds):
            yield "rows", title, rows
    except UserError as error:
        yield "skipped", one_line(error), ""
    except Exception as error:
        yield "failed", one_line(error), traceback.format_exc()


def _process_messages(part: Part, setup: Setup, seconds: float) -> Iterator[tuple[str, Any, Any]]:
    """Run a part in a process of its own for at most so many seconds, and yield its messages."""
    end = time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_serve, args=(theirs, part, setup, max(1.0, seconds - RESERVE)), name=part.name)
    process.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(max(0.0, end - time.monotonic())):
                yield "failed", f"did not end within {seconds:.0f} s", ""
                return
            try:
                yield ours.recv()
            except EOFError:
                break
        process.join(max(1.0, end - time.monotonic()))
        if process.exitcode:
            yield "failed", f"its process has ended with code {process.exitcode}", ""
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def run_part(part: Part, setup: Setup, seconds: float, processes: bool = True) -> Iterator[PartResult]:
    """Run a part; yield its result, which grows, whenever it has measured something, and when it is over.

    Args:
        part: The part.
        setup: What it measures.
        seconds: Time that is left for all parts.
        processes: Whether parts have processes of their own; without them nothing can be ended.
    """
    if seconds < part.least:
        yield PartResult("skipped", f"needs some {part.least:.0f} s, and {max(0.0, seconds):.0f} s are left")
        return
    began, result = time.monotonic(), PartResult("running")
    run = _process_messages if processes and part.isolated else _messages
    for kind, what, more in run(part, setup, min(part.most, seconds)):
        if kind == "rows":
            result.tables.setdefault(what, []).extend(more)
        else:
            result.status, result.reason, result.trace = kind, what, more
        result.seconds = time.monotonic() - began
        yield result
    if result.status == "running":
        result.status = "done"
    result.seconds = time.monotonic() - began
    yield result


def main(
    setup: Setup,
    sessions: Sequence[int] = SESSIONS,
    groups: Sequence[str] = GROUPS,
    minutes: float = 8.0,
    out: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    processes: bool = True,
) -> dict[str, PartResult]:
    """Run the parts, print each one's tables when it is over, and return the results by the parts' names.

    Args:
        setup: What is measured.
        sessions: Sessions of the engines that are measured.
        groups: Those of `GROUPS` that are wanted.
        minutes: Time for all of them.
        out: A JSON file for the results, written whenever there are new ones.
        progress: Gets the name of the part that begins.
        processes: See `run_part`.

    Raises:
        UserError: A group is unknown, or `out` cannot be written.
    """
    wanted, end = parts(sessions, groups), time.monotonic() + 60 * minutes
    console, results = open_console(), dict[str, PartResult]()
    for part in wanted:
        progress(f"{part.name}, {max(0.0, end - time.monotonic()):.0f} s left")
        for result in run_part(part, setup, end - time.monotonic(), processes):
            results[part.name] = result
            if out is not None:
                hub.write_atomically(out, partial(report.save_json, setup=setup, parts=results))
        if found := results[part.name].tables.get(MACHINE_TITLE):
            setup = replace(setup, machine=found[0])
        _print(part, results[part.name], console)
    return results


def _print(part: Part, result: PartResult, console: Console) -> None:
    """Print a part's tables and how it ended, at once: nothing is to be lost if the whole process is ended."""
    for title, rows in result.tables.items():
        report.show(title, rows, console)
    ending = f"{part.name}: {result.status} after {result.seconds:.0f} s"
    console.print(f"{ending}: {result.reason}" if result.reason else ending, markup=False, soft_wrap=True)
    console.file.flush()
