"""The one contract of every streaming module: state is a value.

    y, state = module(x, state)          # a chunk and the state before it -> its output and the state after it
    state = module.init_state(batch)     # the state before anything was heard; `None` means the same

There is one code path: offline is one big chunk from the initial state, and any chunking gives what offline gives. A
state is a tree (tuples, named tuples) of tensors that mirrors the module tree, batch row first, with nothing hidden
on modules: a row is reset, forked or moved by indexing. Two kinds of leaves exist. *Carried* leaves (convolution
tails, key-value tails, positions) are new tensors after every call; *cache* leaves (`Cache`) are preallocated and
written in place, and a cell counts only below its row's position, so that a row rewinds by moving its position back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


class Streaming(Protocol[S]):
    """What a streaming module offers (see the module's text)."""

    def init_state(self, batch: int) -> S: ...

    def forward(self, x: Tensor, state: S | None = None) -> tuple[Tensor, S]: ...


class Cache(NamedTuple):
    """Preallocated keys and values `[B, H, capacity, head_dim]`; cells at or past a row's position are void."""

    keys: Tensor
    values: Tensor


def tree_map(fn: Callable[..., Any], *trees: Any) -> Any:
    """Apply `fn` to the corresponding leaves of trees of one shape; a `Cache` counts as two leaves."""
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    if isinstance(first, tuple):
        children = [tree_map(fn, *nodes) for nodes in zip(*trees, strict=True)]
        return type(first)(*children) if hasattr(first, "_fields") else tuple(children)
    raise TypeError(f"a streaming state holds tensors and tuples, not {type(first).__name__}")


def select_rows(state: S, rows: Tensor) -> S:
    """A copy of the rows `rows [R]` (int64), in that order: fork a row by naming it twice."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def join_rows(states: list[S]) -> S:
    """One batch from several states of the same module, one after the other."""
    return tree_map(lambda *leaves: torch.cat(leaves), *states)


def overwrite_rows(state: S, rows: Tensor, source: S) -> None:
    """Replace the rows `rows [R]` by the R rows of `source`; from `init_state(R)`, a reset. In place: for a state that
    nobody else holds.
    """
    tree_map(lambda leaf, new: leaf.index_copy_(0, rows, new), state, source)


def where_active(active: Tensor, new: Any, old: Any) -> Any:
    """After a call on the whole batch: the new state where `active [B]` is true, the old one where a row sat idle.

    Cache leaves are shared and stay as they are: what an idle row's turn wrote there lies past its position.
    """
    if isinstance(new, Cache):
        return new
    if isinstance(new, Tensor):
        return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
    children = [where_active(active, n, o) for n, o in zip(new, old, strict=True)]
    return type(new)(*children) if hasattr(new, "_fields") else tuple(children)
