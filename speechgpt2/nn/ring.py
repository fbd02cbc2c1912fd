"""The keys and values of a sliding window in a ring of preallocated cells, which a chunk writes in place.

With C cells, step p is in cell p mod C, in every row at the row's own position:

    C = 8     cell   0   1   2   3   4   5   6   7
              step   8   9   2   3   4   5   6   7      a row at position 10; the next chunk replaces steps 2, 3, …

A ring has cells for the window and for one chunk more. So a row may go back to its position before the latest chunk:
that chunk has replaced only steps that no query from there on sees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.nn.attention import attention
from speechgpt2.nn.native import NativeKernels
from speechgpt2.streaming import Cache

CELLS = 16  # a ring has a multiple of so many cells


class RingState(NamedTuple):
    """The steps so far, `position [B]` (int64), and each layer's newest keys and values, which are written in place."""

    position: Tensor
    layers: tuple[Cache, ...]

    @property
    def cells(self) -> int:
        """Cells of a row."""
        return self.layers[0].keys.shape[2]


class RingChunk(NamedTuple):
    """What all layers share in one chunk of T steps.

    `cells [B, T]` are those that the chunk writes, and `mask [B, 1, T, C]` tells which cells a query sees.
    """

    cells: Tensor
    mask: Tensor

    @classmethod
    def at(cls, position: Tensor, steps: int, cells: int, context: int) -> RingChunk:
        """Return what a chunk at `position [B]` needs in a ring of `cells`, if a query sees `context` steps."""
        query = position[:, None] + torch.arange(steps, device=position.device)
        cell = torch.arange(cells, device=position.device)
        newest = query[:, -1:]
        step = (newest - (newest - cell) % cells)[:, None]  # in each cell, [B, 1, C]; negative before the first
        query_step = query[..., None]
        visible = (step <= query_step) & (step > query_step - context) & (step >= 0)
        return cls(query % cells, visible[:, None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, past: Cache) -> tuple[Tensor, Cache]:
        """Write the chunk's keys and values, and attend: all `[B, H, T, d]`."""
        write(past, self.cells, k, v)
        return attention(q, past.keys.to(q.dtype), past.values.to(q.dtype), self.mask), past


class NativeRingChunk(NamedTuple):
    """The same for the kernels in C, which need less: the `position [B]` before the chunk and what a query sees."""

    position: Tensor
    context: int
    kernels: NativeKernels

    def attend(self, heads: Tensor, rotation: tuple[Tensor, Tensor], past: Cache) -> Tensor:
        """Write the chunk's keys and values, and attend.

        Args:
            heads: Queries, keys and values before their rotation, `[B, T, 3, H, d]`.
            rotation: Cosines and sines, `[B, 1, T, d / 2]` float32.
            past: The layer's ring.

        Returns:
            `[B, T, H · d]`.
        """
        cos, sin = (part[:, 0] for part in rotation)
        return self.kernels.attend_ring(heads, cos, sin, past, self.position, self.context)


def ring_cells(context: int, chunk: int) -> int:
    """Return the cells of a ring for chunks of up to `chunk` steps."""
    return -(-(context - 1 + chunk) // CELLS) * CELLS


def write(cache: Cache, cells: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write `keys` and `values [B, H, T, d]` into `cells [B, T]`."""
    index = cells[:, None, :, None].expand_as(keys)
    cache.keys.scatter_(2, index, keys.to(cache.keys.dtype))
    cache.values.scatter_(2, index, values.to(cache.values.dtype))


def newest_cells(position: Tensor, steps: int, cells: int) -> Tensor:
    """Return the cells `[B, steps]` of the steps before `position [B]`, the oldest first."""
    return (position[:, None] + torch.arange(-steps, 0, device=position.device)) % cells


def read(cache: Cache, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of the keys and values in `cells [B, T]`, `[B, H, T, d]` each."""
    shape = (*cache.keys.shape[:2], cells.shape[1], cache.keys.shape[3])
    index = cells[:, None, :, None].expand(shape)
    return cache.keys.gather(2, index), cache.values.gather(2, index)
