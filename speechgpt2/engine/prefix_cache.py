"""What the model has computed of system prompts and greetings, kept for the next session that begins with the same.

Sessions with the same instructions, tools, mode and voice begin with the same patches. The first of them has the model
read these; later ones copy the keys and values, chunk by chunk, which gives the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor

from speechgpt2.lm.state import LMState
from speechgpt2.streaming import Cache

MAX_CHUNKS = 32  # kept; the least recently used are dropped. One takes 2 MB at the sizes of the released model


class PrefixChunk(NamedTuple):
    """What a row holds after a chunk: keys and values of each layer, speech depths, the last hidden state `[1, D]`."""

    layers: tuple[Cache, ...]
    depths: Tensor
    hidden: Tensor


class PrefixCache:
    """Chunks at the beginning of contexts, by a key of all patches up to their end (`Context.prefix_key`)."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[bytes, PrefixChunk] = OrderedDict()

    def copy_to(self, state: LMState, cells: slice, key: bytes) -> Tensor | None:
        """Write a known chunk into the cells of a row's `state`. Returns the hidden state after it, None if unknown."""
        chunk = self._chunks.get(key)
        if chunk is None:
            return None
        self._chunks.move_to_end(key)
        for place, known in zip(state.stack.layers, chunk.layers, strict=True):
            place.keys[:, :, cells], place.values[:, :, cells] = known
        state.speech_depths[:, _after(cells)] = chunk.depths
        return chunk.hidden

    def keep(self, state: LMState, cells: slice, key: bytes, hidden: Tensor) -> None:
        """Keep a copy of the chunk that a row has just taken in."""
        layers = tuple(Cache(c.keys[:, :, cells].clone(), c.values[:, :, cells].clone()) for c in state.stack.layers)
        self._chunks[key] = PrefixChunk(layers, state.speech_depths[:, _after(cells)].clone(), hidden.clone())
        if len(self._chunks) > MAX_CHUNKS:
            self._chunks.popitem(last=False)


def _after(cells: slice) -> slice:
    """The speech depths after the patches of these cells."""
    return slice(cells.start + 1, cells.stop + 1)
