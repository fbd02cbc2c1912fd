"""Several processes that train one model: each draws a part of every step's batch, and their gradients are averaged.

On a CPU two processes of one thread each get through more than one process of two threads, which wait for each other at
every operation; on a machine with several accelerators each process takes one. Everything here does nothing where
there is only one process, so a trainer is written once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechgpt2.errors import UserError


def run(processes: int, work: Callable[[], None]) -> None:
    """Call `work` (it must pickle: a partial of a module's function) in so many processes that know each other.

    This process is the first of them: where it ends, however it ends, the others lose their connection and end too.
    """
    if processes == 1:
        work()
        return
    threads, spawn = torch.get_num_threads(), torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, os.path.join(folder, "meet"), work)
        others = [spawn.Process(target=_follow, args=(rank, *given), daemon=True) for rank in range(1, processes)]
        for other in others:
            other.start()
        try:
            _join(0, *given)
            for other in others:
                other.join()
        finally:
            torch.set_num_threads(threads)
            for other in others:
                other.terminate()


def _follow(rank: int, processes: int, meeting: str, work: Callable[[], None]) -> None:
    with contextlib.suppress(UserError, KeyboardInterrupt):  # the first process meets them too, and tells
        _join(rank, processes, meeting, work)


def _join(rank: int, processes: int, meeting: str, work: Callable[[], None]) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )
    try:
        work()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process; 0 leads: it alone writes and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


def agree(module: nn.Module) -> None:
    """Give all processes the first one's weights and buffers."""
    if count() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one message. Where some processes have none, theirs
    counts as zero: what one of them draws may hold no speech to learn.
    """
    if count() == 1:
        return
    learning = [p for p in parameters if p.requires_grad]
    there = torch.tensor([float(p.grad is not None) for p in learning])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    message = torch.cat([there.to(gradients[0]), *(g.flatten() for g in gradients)])
    dist.all_reduce(message)
    message /= count()
    somewhere, *means = message.split([len(learning), *(g.numel() for g in gradients)])
    for parameter, known, mean in zip(learning, somewhere.tolist(), means, strict=True):
        if known:
            parameter.grad = mean.view_as(parameter)


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`x [N, …]` of all processes, one after the other: `[count · N, …]`, without gradient."""
    if count() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
