"""Slots as rows of a batched state: which rows are computed together, and how their new state is stored.

On a CPU, busy rows are computed in batches of a fixed size, and idle rows, which do not change, fill up the last batch.
So a session's results are equal to the last bit whatever other sessions do: a matrix product of another number of rows
would sum in another order. On a GPU, a step computes all rows, so that its shapes never change; on CUDA it is captured
as a graph (nn/cuda_graph.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechgpt2.nn.cuda_graph import GraphedFunction
from speechgpt2.streaming import overwrite_rows, select_rows, tree_map, where_active

CPU_BATCH = 4  # rows; a multiple of four, because matrix products compute remaining rows differently

S = TypeVar("S")


class BatchRows:
    """The rows of all slots.

    Args:
        slots: Number of slots.
        device: Device of the state.
        batch_size: Rows of a batch on a CPU.

    Attributes:
        count: Number of rows, a multiple of `batch_size`.
        batch_size: Rows of a batch.
        static_shapes: Whether every step computes all rows and must not synchronise with the host.
        is_captured: Whether steps are captured as CUDA graphs.
    """

    def __init__(self, slots: int, device: torch.device, batch_size: int = CPU_BATCH):
        self.device = device
        self.static_shapes, self.is_captured = device.type != "cpu", device.type == "cuda"
        self.batch_size = slots if self.static_shapes else batch_size
        self.count = -(-slots // self.batch_size) * self.batch_size

    def batches(self, slots: Iterable[int]) -> Iterator[Tensor]:
        """Yield the rows to compute for `slots`, in their order, as batches `[batch_size]` (int64)."""
        busy = list(slots)
        if self.static_shapes and busy:
            busy = list(range(self.count))
        idle = sorted(set(range(self.count)) - set(busy))
        for first in range(0, len(busy), self.batch_size):
            batch = busy[first : first + self.batch_size]
            yield torch.tensor(batch + idle[: self.batch_size - len(batch)])

    def to_device(self, values: np.ndarray) -> Tensor:
        """Return a copy on the device."""
        host = torch.tensor(values)
        return host.pin_memory().to(self.device, non_blocking=True) if self.is_captured else host.to(self.device)

    def mask(self, slots: Iterable[int]) -> Tensor:
        """Return `[count]` bool, true in the rows of `slots`."""
        mask = np.zeros(self.count, bool)
        mask[list(slots)] = True
        return self.to_device(mask)

    def graphed(self, function: Callable[..., Any], *idle: tuple[Any, ...]) -> Callable[..., Any]:
        """Return `function`, as CUDA graphs on CUDA. `idle`: arguments of each graph, all rows idle."""
        return GraphedFunction(function, idle) if self.is_captured else function

    def select(self, state: S, rows: Tensor) -> S:
        """Return the rows of a batch."""
        return state if self.static_shapes else select_rows(state, rows)

    def overwrite(self, state: S, rows: Tensor, source: S) -> None:
        """Replace the rows of a batch, in place. What a step has written in place already stays as it is."""
        if self.static_shapes:
            tree_map(lambda target, values: target if values is target else target.copy_(values), state, source)
        else:
            overwrite_rows(state, rows, source)

    def scatter(self, rows: Tensor, values: Tensor) -> Tensor:
        """Put a batch's `values [R, …]` into all rows, `[count, …]`; other rows are 0."""
        if self.static_shapes:
            return values
        return values.new_zeros(self.count, *values.shape[1:]).index_copy_(0, rows, values)

    def update(self, state: S, rows: Tensor, active: Tensor, after: S, before: S) -> None:
        """Replace the rows `rows [R]` of `state` by `after` where `active [R]`; others stay as `before`."""
        if self.static_shapes:
            self.overwrite(state, rows, where_active(active, after, before))
        else:
            moved = active.nonzero()[:, 0]
            overwrite_rows(state, rows[moved], select_rows(after, moved))

    def reset(self, state: S, init_state: Callable[[int], S], slots: Iterable[int]) -> None:
        """Set the rows of `slots` to the initial state."""
        if chosen := list(slots):
            overwrite_rows(state, torch.tensor(chosen, device=self.device), init_state(len(chosen)))
