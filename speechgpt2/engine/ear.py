"""A turn of speech that is being heard: sound of any lengths in, patches to encode out."""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.audio import Blocks
from speechgpt2.engine.sounds import Sound


class Ear:
    """Speech that is being heard, in patches of `samples`. `away`: what is being encoded; `closing`: the last patches
    of the turn, once they are there.
    """

    def __init__(self, samples: int):
        self.patches: deque[np.ndarray] = deque()  # whole ones, not yet encoded
        self.away: Sound | None = None
        self.fresh, self.over, self.closing = True, False, 0
        self.since = 0.0  # when the oldest of them was complete
        self._blocks, self._rest = Blocks(samples), np.zeros(0, np.float32)

    @property
    def settled(self) -> bool:
        """Whether the turn is over, and all of it in the context."""
        return self.closing > 0

    @property
    def due(self) -> bool:
        """Whether there is something to encode; one piece after the other."""
        return self.away is None and (bool(self.patches) or (self.over and not self.settled))

    def hear(self, pcm: np.ndarray, now: float) -> None:
        """More sound."""
        if not self.patches:
            self.since = now
        self.patches.extend(self._blocks.push(pcm))

    def end(self) -> None:
        """The turn is over."""
        self.over = True

    def next(self) -> Sound:
        """What to encode now, which is then away: a whole patch, or the rest that ends the turn."""
        if self.patches:
            self.away = Sound(self.patches.popleft(), self.fresh, final=False)
            self.fresh = False
        else:
            self._rest = self._blocks.rest()
            self.away = Sound(self._rest, self.fresh, final=True)
        return self.away

    def reopen(self) -> None:
        """The turn was not over; what is being made of its end is void."""
        self.over, self.closing = False, 0
        if self.away is not None and self.away.final:
            self.away = None
        rest, self._rest = self._rest, self._rest[:0]
        self.patches.extend(self._blocks.push(rest))
