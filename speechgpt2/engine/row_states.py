"""The language model's state of all slots: a row of keys and values, a position and a hidden state for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechgpt2.engine.batch_rows import BatchRows
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.state import LMState
from speechgpt2.nn.cuda_graph import CELL_BLOCK, graph_length, graph_lengths
from speechgpt2.streaming import Cache, tree_map


class RowStates:
    """The state of all rows, which are written in place.

    Args:
        lm: The language model.
        rows: The rows of the slots.
        context: Patches that each session remembers.

    Attributes:
        capacity: Patches that a row can hold: the context, one more for the patch in progress, and rounded up so that
            `capacity + 1` cells are whole blocks.
        batches: The slots of each batch.
        of_batches: The state of each batch.
        positions: Patches that each row holds, `[R]`. Cells after them are not read.
        hidden: The hidden state of each row's last patch, `[R, D]`.
        kv_lengths: How many cells attention can read in a step with static shapes, in rising order.
    """

    def __init__(self, lm: SpeechLM, rows: BatchRows, context: int):
        self.rows = rows
        self.capacity = -(-(context + 1) // CELL_BLOCK) * CELL_BLOCK - 1
        self.batches = [slice(start, start + rows.batch_size) for start in range(0, rows.count, rows.batch_size)]
        self.of_batches = [lm.init_state(rows.batch_size, self.capacity) for _ in self.batches]
        self.positions = np.zeros(rows.count, np.int64)
        self.hidden = torch.zeros(rows.count, lm.config.backbone.width, dtype=lm.dtype, device=lm.device)
        self.kv_lengths = graph_lengths(self.capacity + 1)

    def state(self, slots: slice, positions: Tensor) -> LMState:
        """Return the state of some slots of one batch, at `positions`. What is written to its caches stays."""
        batch, first = divmod(slots.start, self.rows.batch_size)
        state, rows = self.of_batches[batch], slice(first, first + slots.stop - slots.start)
        layers = tuple(Cache(cache.keys[rows], cache.values[rows]) for cache in state.stack.layers)
        return LMState(StackState(positions, layers), state.speech_depths[rows])

    def gather(self, slots: Sequence[int], kv_length: int) -> LMState:
        """Return a copy of the state of some slots, up to `kv_length` cells, if all slots are one batch."""
        (state,), rows = self.of_batches, self.rows.to_device(np.array(slots))
        layers = tuple(Cache(*(cells[rows, :, :kv_length] for cells in cache)) for cache in state.stack.layers)
        return LMState(StackState(self.rows.to_device(self.positions[slots]), layers), state.speech_depths[rows])

    def put_back(self, slots: Sequence[int], gathered: LMState) -> None:
        """Write what `gather` has copied, and was changed since, into the rows of the slots."""
        (state,), rows = self.of_batches, self.rows.to_device(np.array(slots))
        for cache, part in zip(state.stack.layers, gathered.stack.layers, strict=True):
            length = part.keys.shape[2]
            cache.keys[rows, :, :length], cache.values[rows, :, :length] = part
        state.speech_depths[rows] = gathered.speech_depths

    def kv_length(self, slots: slice, new_patches: int) -> int:
        """Return how many cells of the slots' caches attention reads, with up to `new_patches` more in each row."""
        needed = int(self.positions[slots].max()) + new_patches
        if self.rows.static_shapes:
            return graph_length(self.kv_lengths, needed)
        return min(-(-needed // CELL_BLOCK) * CELL_BLOCK, self.capacity + 1)

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        """Erase the row of a slot."""
        batch, row = divmod(slot, self.rows.batch_size)
        tree_map(lambda leaf: leaf[row].zero_(), self.of_batches[batch])
        self.hidden[slot].zero_()
        self.positions[slot] = 0
