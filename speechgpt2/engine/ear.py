"""What a session hears: samples that come in any pieces, and the chunks of whole frames that the encoder gets.

    idle ──begin──► open ──end──► ended ──keep──► idle
                      ▲────take_back──┘

Outside of a turn only the newest samples are kept, since a turn begins a little before anyone can tell that it has. A
turn that has ended may be reopened, so what comes after its end is held, not encoded.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

RECENT = 2 * SAMPLE_RATE  # samples kept outside of a turn
HELD = 30 * SAMPLE_RATE  # samples kept after the end of a turn that may be reopened

NOTHING = np.zeros(0, np.float32)


class Ear:
    """One session's samples. `patch`: frames that are encoded at a time."""

    def __init__(self, patch: int):
        self.patch = patch
        self.state: Literal["idle", "open", "ended"] = "idle"
        self._aside = NOTHING  # what came outside of the turn
        self._turn = NOTHING  # what came in it and is not encoded

    def hear(self, pcm: np.ndarray) -> None:
        """The next samples `[N]`."""
        if self.state == "open":
            self._turn = np.concatenate([self._turn, pcm])
        else:
            most = RECENT if self.state == "idle" else HELD
            self._aside = np.concatenate([self._aside, pcm])[-most:]

    def begin(self, prefix: int) -> None:
        """A turn begins, `prefix` samples ago."""
        self.keep()
        self._turn = self._aside[len(self._aside) - min(prefix, len(self._aside)) :]
        self._aside, self.state = NOTHING, "open"

    def end(self) -> None:
        """The turn ends here."""
        self.state = "ended"

    def take_back(self) -> None:
        """It did not."""
        self._turn = np.concatenate([self._turn, self._aside])
        self._aside, self.state = NOTHING, "open"

    def keep(self) -> None:
        """It did; whatever state this is, the next turn is another one."""
        self._turn, self.state = NOTHING, "idle"
        self._aside = self._aside[-RECENT:]

    @property
    def frames(self) -> int:
        """Of the next chunk: a whole patch, or at the end of the turn one by one what is left; 0 if there is none."""
        ready = len(self._turn) // FRAME_SIZE
        if ready >= self.patch:
            return self.patch
        return min(ready, 1) if self.state == "ended" else 0

    def take(self) -> np.ndarray:
        """The next chunk's samples, `[960 · frames]`."""
        size = self.frames * FRAME_SIZE
        chunk, self._turn = self._turn[:size], self._turn[size:]
        return chunk
