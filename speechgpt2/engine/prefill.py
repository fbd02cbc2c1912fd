"""Prefill chunks of several patches. On CUDA the chunks of several slots are one batch, on a CPU each is one by itself.

A product of more rows would sum in another order, and on a CPU a session's results do not depend on other sessions.
Chunks have variable shapes, so they are not captured as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from speechgpt2.engine.prefix_cache import PrefixCache
from speechgpt2.engine.row_states import RowStates
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.state import LMState
from speechgpt2.types import Patches


class PrefillChunk(NamedTuple):
    """A chunk to prefill, `[1, P]`. `prefix_key` is the key of all patches up to its end, if they may be cached."""

    patches: Patches
    prefix_key: bytes | None

    @property
    def length(self) -> int:
        """Number of patches."""
        return self.patches.text.shape[1]


class Prefiller:
    """Prefills chunks into the rows of their slots."""

    def __init__(self, lm: SpeechLM, states: RowStates):
        self.lm, self.states, self.rows = lm, states, states.rows
        self.prefixes = PrefixCache()

    @torch.inference_mode()
    def prefill(self, chunks: Mapping[int, PrefillChunk]) -> Iterator[None]:
        """Prefill a chunk of each of some slots. Yields after each call of the model."""
        together = self.rows.static_shapes and len(chunks) > 0
        for slots in [list(chunks)] if together else [[slot] for slot in chunks]:
            new = {slot: chunks[slot] for slot in slots if not self._copy_prefix(slot, chunks[slot])}
            if len(new) == 1:
                self._prefill_one(*new.popitem())
            elif new:
                self._prefill_batch(new)
            for slot in slots:
                self.states.positions[slot] += chunks[slot].length
            yield

    def _copy_prefix(self, slot: int, chunk: PrefillChunk) -> bool:
        """Copy a chunk into a slot's row if its prefix is cached. Returns whether it is."""
        hidden = chunk.prefix_key and self.prefixes.copy_to(*self._row(slot, chunk), chunk.prefix_key)
        if hidden is None:
            return False
        self.states.hidden[slot] = hidden[0]
        return True

    def _keep_prefix(self, slot: int, chunk: PrefillChunk) -> None:
        if chunk.prefix_key is not None:
            self.prefixes.keep(*self._row(slot, chunk), chunk.prefix_key, self.states.hidden[slot : slot + 1])

    def _row(self, slot: int, chunk: PrefillChunk) -> tuple[LMState, slice]:
        """Return the state of a slot's row, and the cells of a chunk that comes next in it."""
        row, begin = slice(slot, slot + 1), int(self.states.positions[slot])
        state = self.states.state(row, self.rows.to_device(self.states.positions[row]))
        return state, slice(begin, begin + chunk.length)

    def _prefill_one(self, slot: int, chunk: PrefillChunk) -> None:
        state, cells = self._row(slot, chunk)
        self.states.hidden[slot : slot + 1], _ = self.lm.prefill(chunk.patches, state, kv_length=cells.stop)
        self._keep_prefix(slot, chunk)

    def _prefill_batch(self, chunks: Mapping[int, PrefillChunk]) -> None:
        """Prefill several rows: gather them with the cells that attention reads, and put them back."""
        slots, lengths = list(chunks), np.array([chunk.length for chunk in chunks.values()])
        # One cell more than the longest row with its padding: what does not fit is written to the last cell.
        kv_length = int(self.states.positions[slots].max() + lengths.max()) + 1
        state = self.states.gather(slots, min(kv_length, self.states.capacity + 1))
        patches, rows = self._padded(chunks), self.rows.to_device(np.array(slots))
        hidden, _ = self.lm.prefill(patches, state, self.rows.to_device(lengths), state.stack.capacity + 1)
        self.states.hidden[rows] = hidden
        self.states.put_back(slots, state)
        for slot, chunk in chunks.items():
            self._keep_prefix(slot, chunk)

    def _padded(self, chunks: Mapping[int, PrefillChunk]) -> Patches:
        """Return chunks as one batch `[R, P]` on the device."""
        c, longest = self.lm.config, max(chunk.length for chunk in chunks.values())
        text = np.zeros((len(chunks), longest), np.int64)
        codes = np.full((len(chunks), longest, c.patch_frames, c.codebooks), c.no_speech)
        for row, chunk in enumerate(chunks.values()):
            text[row, : chunk.length], codes[row, : chunk.length] = (part[0] for part in chunk.patches)
        return Patches(self.rows.to_device(text), self.rows.to_device(codes))
