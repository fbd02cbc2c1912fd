"""Measures what this machine can do at best: arithmetic (large matrix products) and memory (reading a large array)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from speechgpt2.eval.report import column
from speechgpt2.nn.quantized import Quantizable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BF16_GAIN = 1.2  # least speed-up over float32 of a processor with bfloat16 instructions
TIME_LIMIT = 4.0  # seconds for the products of one type
BUSY_CORES = 0.3  # cores that other programs use, above which they slow the benchmark down
LOOK_SECONDS = 0.3  # for which their use is measured


@dataclass(frozen=True)
class Machine:
    """Peak performance, the best of a few tries.

    Attributes:
        flops: Operations per second by type.
        bandwidth: Bytes per second.
        threads: Threads used.
        device: Where it computes.
    """

    flops: dict[str, float]
    bandwidth: float
    threads: int
    device: str = "cpu"

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 is faster than float32: not without instructions for it, nor beside other programs."""
        return self.flops["bfloat16"] > BF16_GAIN * self.flops["float32"]

    def floor(self, flops: float, size: float, dtype: str = "float32") -> float:
        """Return the least seconds that `flops` operations and reading `size` bytes take."""
        return max(flops / self.flops[dtype], size / self.bandwidth)

    def report(self, console: Console) -> None:
        """Print the measurements, and whether bfloat16 is faster."""
        speeds = ", ".join(f"{value / 1e9:.0f} GFLOP/s in {name}" for name, value in self.flops.items())
        where = f"{self.threads} threads" if self.device == "cpu" else self.device
        console.print(f"This machine, {where}: {speeds}, reads {self.bandwidth / 1e9:.1f} GB/s", soft_wrap=True)
        if not self.has_bf16:
            console.print("bfloat16 is no faster than float32 here, now")


@dataclass(frozen=True)
class PartSpeed:
    """Speed of one part of a model in steady state, for one stream.

    Attributes:
        median_ms: Median time of a step.
        p95_ms: Its 95th percentile.
        rtf: Median time ÷ duration of the audio of a step; nan for a step without audio.
    """

    model: str = column("model")
    part: str = column("part")
    dtype: str = column("type")
    median_ms: float = column("ms, median", ".1f")
    p95_ms: float = column("95 %", ".1f")
    rtf: float = column("RTF", ".3f")


def open_console() -> Console:
    """Return the console for a benchmark's tables, and warn if other programs run.

    OpenMP's threads wait for each other, so a shared core slows all of them.
    """
    console = Console()
    cores = cores_of_others()
    if cores > BUSY_CORES:
        text = f"Other programs are running (they use {cores:.1f} cores): these times are upper bounds"
        print(text, file=sys.stderr, flush=True)  # into a pipe go the tables
    return console


def cores_of_others() -> float:
    """Measure how many cores other programs use now; 0 where the system does not tell."""
    before = _busy_seconds()
    if before is None:
        return 0.0
    began = time.perf_counter()
    time.sleep(LOOK_SECONDS)
    after = _busy_seconds()
    assert after is not None
    return max(0.0, (after - before) / (time.perf_counter() - began))


def _busy_seconds() -> float | None:
    """Return the processor time of all other programs since the machine started; None where Linux' /proc is missing."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields)
    total = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return total - own.user - own.system


class Memory:
    """An array larger than any cache, to measure the bandwidth of reading."""

    def __init__(self, megabytes: int = 384, device: str = "cpu"):
        self.block = torch.ones(megabytes * 2**18, device=device).view(-1, 4096)
        self.vector, self.device = torch.ones(4096, device=device), device

    def bandwidth(self, tries: int = 1) -> float:
        """Return bytes per second, the best of `tries` sums and `tries` products with a vector."""
        works = self.block.sum, lambda: self.block @ self.vector
        fastest = min(seconds for work in works for seconds in times(work, tries, self.device))
        return self.block.numel() * 4 / fastest


def measure(
    threads: int = 2,
    sizes: tuple[int, ...] = (384, 1536),
    megabytes: int = 384,
    tries: int = 5,
    device: str = "cpu",
) -> Machine:
    """Measure this machine.

    Args:
        threads: Threads of torch; stay set afterwards.
        sizes: Widths of the square matrices that are multiplied.
        megabytes: Size of the array that is read.
        tries: Repetitions, of which the best counts.
        device: Where to compute.
    """
    torch.set_num_threads(threads)
    flops = {name: max(_products(dtype, sizes, tries, device)) for name, dtype in DTYPES.items()}
    return Machine(flops, Memory(megabytes, device).bandwidth(tries), threads, device)


def _products(dtype: torch.dtype, sizes: tuple[int, ...], tries: int, device: str) -> Iterator[float]:
    """Yield operations per second by size; stops before a slow, emulated type exceeds the time limit."""
    for size in sizes:
        a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
        speed = 2 * size**3 / min(times(lambda a=a, b=b: a @ b, tries, device))  # type: ignore[misc]
        yield speed
        if 2 * max(sizes) ** 3 * tries / speed > TIME_LIMIT:
            return


def synchronize(device: str) -> None:
    """Wait until a device has computed all that it was given; a CPU always has."""
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def times(work: Callable[[], Any], tries: int, device: str = "cpu") -> list[float]:
    """Return the wall seconds of `tries` calls on a device, after a warm-up call."""
    work()
    synchronize(device)
    result = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        synchronize(device)
        result.append(time.perf_counter() - start)
    return result


def count_flops(work: Callable[[], Any]) -> float:
    """Return the floating-point operations of the products and convolutions in one call of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def weight_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters and quantized matrices, as stored."""
    quantizable = (part for part in module.modules() if isinstance(part, Quantizable))
    matrices = sum(matrix.nbytes for part in quantizable for matrix in part.quantized().values())
    return matrices + sum(p.numel() * p.element_size() for p in module.parameters())


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile in milliseconds."""
    median, high = np.percentile(seconds, [50, 95]) * 1000
    return float(median), float(high)
