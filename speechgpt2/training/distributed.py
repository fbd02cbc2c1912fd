"""Data-parallel training: each process draws its own part of a batch, and gradients are averaged.

On a CPU two processes of one thread train faster than one process of two threads, which wait for each other at every
operation. On a machine with several accelerators each process takes one. With a single process all functions here do
nothing, so a trainer is written once.

`shard` divides weights, gradients and optimizer states among the processes (FSDP2, Zhao et al., 2023,
https://arxiv.org/abs/2304.11277), for models that one device cannot hold. Checkpoints hold whole tensors, so a run may
go on with another number of processes.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from speechgpt2.errors import UserError

LOST = 3.0  # seconds in which a process whose connection broke must have ended


def launch(processes: int, work: Callable[[], None]) -> None:
    """Call `work` in several connected processes, of which this one is the first.

    Under `torchrun` the processes are there already, on one machine or several, and `processes` is ignored.

    If the first process ends for any reason, the others lose their connection and end too.

    Raises:
        UserError: If another process was lost.

    Args:
        processes: How many.
        work: The function. It must be picklable, such as a partial of a module's function.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", work)
        return
    if processes == 1:
        work()
        return
    threads, spawn = torch.get_num_threads(), torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, f"file://{folder}/meet", work)
        others = [spawn.Process(target=_follow, args=(rank, *given)) for rank in range(1, processes)]
        for other in others:
            other.start()
        try:
            _join(0, *given)
            for other in others:
                other.join()
        except RuntimeError as error:  # the connection to a process that has ended
            for other in others:
                other.join(LOST)
            lost = next((other for other in others if other.exitcode), None)
            if lost is None:
                raise
            number = others.index(lost) + 1
            raise UserError(
                f"process {number} of the run ended (exit code {lost.exitcode}); go on with --resume"
            ) from error
        finally:
            torch.set_num_threads(threads)
            for other in others:
                other.terminate()


def _follow(rank: int, processes: int, meeting: str, work: Callable[[], None]) -> None:
    with contextlib.suppress(UserError, KeyboardInterrupt):  # the first process has the same error and reports it
        _join(rank, processes, meeting, work)


def _join(rank: int, processes: int, meeting: str, work: Callable[[], None]) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices:
        torch.cuda.set_device(rank % devices)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    dist.init_process_group(backend(devices, here), init_method=meeting, rank=rank, world_size=processes)
    try:
        work()
    finally:
        dist.destroy_process_group()


def backend(devices: int, processes: int) -> str:
    """Return what connects the processes of a machine with so many GPUs.

    NCCL neither gathers tensors on the CPU nor connects two processes on one GPU; gloo does both, more slowly.
    """
    return "cpu:gloo,cuda:nccl" if devices >= processes else "gloo"


def rank() -> int:
    """Return the number of this process. Process 0 leads: it alone writes and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def from_leader(value: float) -> float:
    """Return the first process's value, so that all take the same decision."""
    if world_size() == 1:
        return value
    sent = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(sent, src=0)
    return float(sent)


def gather_objects(values: list[Any]) -> list[Any]:
    """Concatenate lists of small picklable objects of all processes."""
    if world_size() == 1:
        return values
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def broadcast_weights(module: nn.Module) -> None:
    """Give all processes the weights and buffers of the first one."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one message.

    A process without a gradient counts as zero: its part of a batch may hold no speech to learn.
    """
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    known = torch.tensor([float(p.grad is not None) for p in trained])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    message = torch.cat([known.to(gradients[0]), *(g.flatten() for g in gradients)])
    dist.all_reduce(message)
    message /= world_size()
    counts, *means = message.split([len(trained), *(g.numel() for g in gradients)])
    for parameter, count, mean in zip(trained, counts.tolist(), means, strict=True):
        if count:
            parameter.grad = mean.view_as(parameter)


def overlapped(module: nn.Module, has_unused: bool = False) -> nn.Module:
    """Return what to call in a step in place of `module`: its backward pass averages the gradients while it runs.

    With one process it is `module` itself.

    Args:
        module: What is called once in a step. Its weights must be the same in all processes, and so must its buffers,
            which it updates itself.
        has_unused: Whether some steps do not reach all parameters, which then keep no gradient.
    """
    if world_size() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before PyTorch 2.13
    options: dict[str, Any] = {sync: False, "find_unused_parameters": has_unused, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, **options)


def shard(module: nn.Module, layers: Iterable[nn.Module], methods: Iterable[str] = ()) -> None:
    """Divide the parameters of `module` among the processes, those of each layer together.

    Args:
        module: What is called in a step. Its weights must be the same in all processes.
        layers: Parts whose weights are whole only while they compute.
        methods: Names of further methods of `module` that need its weights.
    """
    if world_size() == 1:
        return
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in layers:
        fully_shard(layer)
    fully_shard(module)
    for method in methods:
        register_fsdp_forward_method(module, method)


def whole(value: Any) -> Any:
    """Return a tree of tensors in which sharded tensors are whole. All processes must call it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor as a tensor that is sharded as `reference` is, or unchanged if that is whole."""
    if not isinstance(reference, DTensor) or value.shape != reference.shape:
        return value
    return distribute_tensor(value.to(reference.device), reference.device_mesh, reference.placements)


@torch.no_grad()
def add_up(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, without gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def average(x: Tensor) -> Tensor:
    """Return the mean of `x` over all processes, without gradient."""
    return add_up(x) / world_size()


def part_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return this process's part of a mean over all processes, 0 if they count nothing.

    The mean of the parts, and of their gradients, is the sum of all `total` divided by the sum of all `count`.
    """
    return total / (add_up(count).clamp(min=1) / world_size())


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Concatenate `x [N, …]` of all processes: `[world_size · N, …]`, without gradient."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
