"""The contract of every streaming module: state is a value.

    y, state = module(x, state)          # a chunk and the state before it -> its output and the state after it
    state = module.init_state(batch)     # the state before any input; `None` means the same

There is one code path. Offline is one big chunk from the initial state, and streaming equals offline for any chunking.
A state is a tree (tuples, named tuples) of tensors with the batch row first. Nothing is hidden on modules, so a row is
reset, forked or moved by indexing.

A state has two kinds of leaves. *Carried* leaves (convolution tails, key-value tails, positions) are new tensors after
every call. *Cache* leaves (`Cache`) are preallocated and written in place. A cell counts only below its row's position,
so a row rewinds by moving its position back. In a ring (nn/ring.py) new cells replace the oldest, and a row rewinds by
one chunk at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


class Streaming(Protocol[S]):
    """The interface of a streaming module."""

    def init_state(self, batch: int) -> S:
        """Return the state of `batch` rows before any input."""
        ...

    def forward(self, x: Tensor, state: S | None = None) -> tuple[Tensor, S]:
        """Process one chunk and return its output and the next state."""
        ...


class Cache(NamedTuple):
    """Preallocated keys and values `[B, H, capacity, head_dim]`; what a row's position does not reach is never read."""

    keys: Tensor
    values: Tensor


def tree_map(fn: Callable[..., Any], *trees: Any) -> Any:
    """Apply `fn` to the corresponding leaves of trees of one shape. A `Cache` counts as two leaves."""
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    if isinstance(first, tuple):
        children = [tree_map(fn, *nodes) for nodes in zip(*trees, strict=True)]
        return type(first)(*children) if hasattr(first, "_fields") else tuple(children)
    raise TypeError(f"a streaming state holds tensors and tuples, not {type(first).__name__}")


def select_rows(state: S, rows: Tensor) -> S:
    """Return a copy of the rows `rows [R]` (int64), in that order. A row that is listed twice is forked."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def join_rows(states: list[S]) -> S:
    """Concatenate states of the same module along the batch."""
    return tree_map(lambda *leaves: torch.cat(leaves), *states)


def overwrite_rows(state: S, rows: Tensor, source: S) -> None:
    """Replace, in place, the rows `rows [R]` by the R rows of `source`; `init_state(R)` resets them."""
    tree_map(lambda leaf, new: leaf.index_copy_(0, rows, new), state, source)


def where_active(active: Tensor, new: Any, old: Any) -> Any:
    """Return the new state of the rows that are `active [B]` (bool) and the old state of the others.

    Cache leaves are shared and stay as they are: what a call wrote for an inactive row lies past its position.
    """
    if isinstance(new, Cache):
        return new
    if isinstance(new, Tensor):
        return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
    children = [where_active(active, n, o) for n, o in zip(new, old, strict=True)]
    return type(new)(*children) if hasattr(new, "_fields") else tuple(children)
