"""One test of the contract in `speechgpt2.streaming`, for every streaming module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechgpt2.streaming import join_rows, overwrite_rows, select_rows, tree_map, where_active

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def verify_contract(
    step: Step,
    init_state: Callable[[int], Any],
    x: Tensor,
    time: int,
    chunks: list[int],
    grid: int = 1,
    tolerance: float = 2e-6,
) -> None:
    """`step(chunk, state)` on `x` (batch of at least 2, time on axis `time`), cut by `chunks` (in units of `grid`,
    repeated).
    """
    offline, _ = step(x, None)

    def close(ours: Tensor, wanted: Tensor, what: str) -> None:
        assert ours.shape == wanted.shape, what
        scale = max(wanted.abs().max().item(), 1.0) if wanted.is_floating_point() else 0
        assert (ours.double() - wanted.double()).abs().max().item() <= tolerance * scale, what

    def stream(x: Tensor, state: Any) -> tuple[list[Tensor], Any]:
        pieces, at, turn = [], 0, 0
        while at < x.shape[time]:
            size = min(chunks[turn % len(chunks)] * grid, x.shape[time] - at)
            y, state = step(x.narrow(time, at, size), state)
            pieces.append(y)
            at, turn = at + size, turn + 1
        return pieces, state

    axis = min(time, offline.dim() - 1)
    pieces, last = stream(x, init_state(len(x)))
    close(torch.cat(pieces, axis), offline, "any chunking equals offline")
    close(step(x[1:2], None)[0], offline[1:2], "a row in a batch equals the row alone")

    half = x.shape[time] // grid // 2 * grid
    first, rest = x.narrow(time, 0, half), x.narrow(time, half, x.shape[time] - half)
    head, middle = step(first, init_state(len(x)))
    wanted, _ = step(rest, middle)

    late = join_rows([select_rows(middle, torch.tensor([0])), init_state(1)])
    y, _ = (
        step(torch.cat([rest[:1], first[1:2].narrow(time, 0, min(half, rest.shape[time]))]), late)
        if half == rest.shape[time]
        else (None, None)
    )
    if y is not None:
        close(y[:1], wanted[:1], "a row that started earlier is not touched by its neighbour")
        close(y[1:], head[1:2], "a row may start later than its neighbour")

    before = tree_map(torch.clone, middle)
    _, moved = step(rest, middle)
    idle = where_active(torch.tensor([False] * len(x)), moved, middle)
    close(step(rest, idle)[0], wanted, "an idle row is unchanged")
    close(step(rest, before)[0], wanted, "a state is a value: it can be kept and used again")

    fork = select_rows(before, torch.tensor([0, 0]))
    twice = torch.cat([rest[:1], rest[:1]])
    close(step(twice, fork)[0][1:], wanted[:1], "a fork goes on like the original")

    reset = tree_map(torch.clone, last)
    overwrite_rows(reset, torch.arange(len(x)), init_state(len(x)))
    close(step(x, reset)[0], offline, "a reset row is new")
