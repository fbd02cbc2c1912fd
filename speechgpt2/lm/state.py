"""The state of a language model's rows, and what can be done with it: rewind a row, grow the cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechgpt2.lm.backbone import StackState
from speechgpt2.streaming import Cache


class LMState(NamedTuple):
    """The backbone's cache, and how many speech segments are open after each position.

    `speech_depths [B, capacity + 2]` (int64) counts speech segments opened less those closed, after so many patches.
    Everything follows from a row's position, so a row rewinds by moving its position back.
    """

    stack: StackState
    speech_depths: Tensor

    @property
    def position(self) -> Tensor:
        """Patches in the state, `[B]`."""
        return self.stack.position

    @property
    def speech_depth(self) -> Tensor:
        """Speech segments opened less those closed, `[B]`. The row is within speech if this is not 0."""
        return self.speech_depths.gather(1, self.stack.position[:, None])[:, 0]

    def note_depths(self, text: Tensor, speech_start: int, speech_end: int) -> None:
        """Write, in place, the depths after the tokens `text [B, P]` that follow the present position."""
        change = (text == speech_start).long() - (text == speech_end).long()
        index = self.position[:, None] + torch.arange(1, text.shape[1] + 1, device=text.device)
        depths = self.speech_depth[:, None] + change.cumsum(1)  # entries past a row's length are never read
        self.speech_depths.scatter_(1, index.clamp(max=self.speech_depths.shape[1] - 1), depths)


def at_position(state: LMState, position: Tensor) -> LMState:
    """Return `state` at `position [B]`, which must not exceed what it holds."""
    return LMState(StackState(position, state.stack.layers), state.speech_depths)


def rewind(state: LMState, row: int, position: int) -> LMState:
    """Return `state` with `row` moved back to at most `position` patches."""
    moved = state.position.clone()
    moved[row] = moved[row].clamp(max=position)
    return at_position(state, moved)


def extend_capacity(state: LMState, capacity: int) -> LMState:
    """Return a copy with room for `capacity` patches, at least as many as the rows hold."""
    added = capacity - state.stack.capacity
    layers = tuple(Cache(*(F.pad(cells, (0, 0, 0, added)) for cells in cache)) for cache in state.stack.layers)
    return LMState(StackState(state.position, layers), F.pad(state.speech_depths, (0, added)))
