"""Slots as rows of a state: which of them are computed together, and how what they went through is kept.

On a CPU so many rows are computed at a time: those that have something to do come together, and what they lack is
filled up with idle rows, which stay as they were. So a session's results are the same to the last bit whoever else is
talking; a product of another number of rows would add up in another order. On CUDA a step is computed for all rows, so
that its shapes never change, and recorded (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechgpt2.engine.graphs import Recording
from speechgpt2.streaming import overwrite_rows, select_rows, tree_map, where_active

FEW = 4  # rows that a CPU computes at a time: of no multiple of four, products treat the last rows differently

S = TypeVar("S")


class Rows:
    """The rows of at least `slots` slots: `count` of them, `together` in a group. `fixed`: every step computes all of
    them, and the device is not waited for.
    """

    def __init__(self, slots: int, device: torch.device, together: int = FEW):
        self.device, self.fixed = device, device.type == "cuda"
        self.count = -(-slots // together) * together
        self.together = self.count if self.fixed else together

    def groups(self, slots: Iterable[int]) -> Iterator[Tensor]:
        """The rows to compute for those of `slots`, in their order, as many in each group as are computed together; or
        all of them.
        """
        busy = list(slots)
        if self.fixed and busy:
            busy = list(range(self.count))
        idle = sorted(set(range(self.count)) - set(busy))
        for first in range(0, len(busy), self.together):
            group = busy[first : first + self.together]
            yield torch.tensor(group + idle[: self.together - len(group)])

    def put(self, values: np.ndarray) -> Tensor:
        """A copy on the device."""
        host = torch.tensor(values)
        return host.pin_memory().to(self.device, non_blocking=True) if self.fixed else host

    def mask(self, slots: Iterable[int]) -> Tensor:
        """True in the rows of `slots`, `[count]`."""
        mask = np.zeros(self.count, bool)
        mask[list(slots)] = True
        return self.put(mask)

    def record(self, function: Callable[..., Any], *idle: Any) -> Callable[..., Any]:
        """`function`; where all rows are computed, recorded. `idle`: arguments with which no row changes."""
        return Recording(function, *idle) if self.fixed else function

    def select(self, state: S, rows: Tensor) -> S:
        """The rows of a group."""
        return state if self.fixed else select_rows(state, rows)

    def overwrite(self, state: S, rows: Tensor, source: S) -> None:
        """In place, a group's rows."""
        if self.fixed:
            tree_map(lambda leaf, new: leaf.copy_(new), state, source)
        else:
            overwrite_rows(state, rows, source)

    def spread(self, rows: Tensor, values: Tensor) -> Tensor:
        """A group's `values [R, …]` among all rows, `[count, …]`; 0 elsewhere."""
        return values if self.fixed else values.new_zeros(self.count, *values.shape[1:]).index_copy_(0, rows, values)

    def keep(self, state: S, rows: Tensor, active: Tensor, after: S, before: S) -> None:
        """The rows `rows [R]` of `state` become `after` where `active [R]`, else they stay as they were, `before`."""
        if self.fixed:
            self.overwrite(state, rows, where_active(active, after, before))
        else:
            moved = active.nonzero()[:, 0]
            overwrite_rows(state, rows[moved], select_rows(after, moved))

    def reset(self, state: S, init_state: Callable[[int], S], slots: Iterable[int]) -> None:
        """Make the rows of `slots` as if nothing had been heard."""
        if chosen := list(slots):
            overwrite_rows(state, torch.tensor(chosen, device=self.device), init_state(len(chosen)))
