"""Prefix caching: keys and values of system prompts and greetings, for later sessions that begin with the same patches.

Sessions with the same instructions, tools, mode and voice have the same prefix. The first of them prefills it; later
ones copy the keys and values, chunk by chunk, with results that are equal to the last bit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from torch import Tensor

from speechgpt2.engine.context import Context
from speechgpt2.lm.state import LMState
from speechgpt2.streaming import Cache

MAX_PATCHES = 1024  # the least recently used chunks are dropped. All take 60 MB at the sizes of the released model


class PrefixChunk(NamedTuple):
    """The state of a row after a chunk: keys and values of each layer, speech depths, last hidden state `[1, D]`."""

    layers: tuple[Cache, ...]
    depths: Tensor
    hidden: Tensor


class PrefixCache:
    """Prefill chunks at the beginning of contexts, by a key of all patches up to their end (`prefix_key`)."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[bytes, PrefixChunk] = OrderedDict()

    def copy_to(self, state: LMState, cells: slice, key: bytes) -> Tensor | None:
        """Write a cached chunk into the cells of a row's `state`. Returns its hidden state; None if there is none."""
        chunk = self._chunks.get(key)
        if chunk is None:
            return None
        self._chunks.move_to_end(key)
        for layer, cached in zip(state.stack.layers, chunk.layers, strict=True):
            layer.keys[:, :, cells], layer.values[:, :, cells] = cached
        state.speech_depths[:, _after(cells)] = chunk.depths
        return chunk.hidden

    def keep(self, state: LMState, cells: slice, key: bytes, hidden: Tensor) -> None:
        """Cache a copy of the chunk that a row has just read."""
        layers = tuple(Cache(c.keys[:, :, cells].clone(), c.values[:, :, cells].clone()) for c in state.stack.layers)
        self._chunks[key] = PrefixChunk(layers, state.speech_depths[:, _after(cells)].clone(), hidden.clone())
        while sum(chunk.depths.shape[1] for chunk in self._chunks.values()) > MAX_PATCHES:
            self._chunks.popitem(last=False)


def prefix_key(context: Context, stop: int) -> bytes | None:
    """Return a key of the patches of a context up to `stop`, where a chunk ends.

    Returns:
        Equal keys for equal patches in equal chunks. None beyond the system prompt, or if an edit has made the chunks
        irregular.
    """
    regular = np.arange(stop) % context.prefill_chunk_size == 0
    if stop > context.system_length or not np.array_equal(context.chunk_starts[:stop], regular):
        return None
    return hashlib.sha256(context.text[:stop].tobytes() + context.codes[:stop].tobytes()).digest()


def _after(cells: slice) -> slice:
    """Return where the speech depths after the patches of `cells` are stored."""
    return slice(cells.start + 1, cells.stop + 1)
