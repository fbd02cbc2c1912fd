"""A turn of speech that is being heard: sound of any lengths in, patches to encode out."""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.audio import Blocks
from speechgpt2.engine.sounds import Sound


class Ear:
    """Speech that is being heard, in patches of `samples`. `closing`: its last patches, once it is over."""

    def __init__(self, samples: int):
        self.patches: deque[np.ndarray] = deque()  # whole ones, not yet encoded
        self.fresh, self.over, self.closing = True, False, 0
        self.since = 0.0  # when the oldest of them was complete
        self._blocks, self._rest = Blocks(samples), np.zeros(0, np.float32)

    @property
    def settled(self) -> bool:
        """Whether the turn is over, and all of it in the context."""
        return self.closing > 0

    @property
    def due(self) -> bool:
        """Whether there is something to encode."""
        return bool(self.patches) or (self.over and not self.settled)

    def hear(self, pcm: np.ndarray, now: float) -> None:
        """More sound."""
        if not self.patches:
            self.since = now
        self.patches.extend(self._blocks.push(pcm))

    def end(self) -> None:
        """The turn is over."""
        self.over = True

    def next(self) -> Sound:
        """What to encode now: a whole patch, or the rest that ends the turn."""
        if self.patches:
            sound = Sound(self.patches.popleft(), self.fresh, final=False)
            self.fresh = False
            return sound
        self._rest = self._blocks.rest()
        return Sound(self._rest, self.fresh, final=True)

    def reopen(self) -> None:
        """The turn was not over."""
        self.over, self.closing = False, 0
        rest, self._rest = self._rest, self._rest[:0]
        self.patches.extend(self._blocks.push(rest))
