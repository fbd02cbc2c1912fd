"""How much of a reply its listener can have heard: what was passed on, played from the first sample on without a stop.

Only the client knows exactly, and may say so later (`truncate`); this is what is assumed until then.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.types import SAMPLE_RATE


class Playback:
    """A loudspeaker that plays what it gets, at once. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._given = 0
        self._ends = 0.0  # when all that was given will have been played

    def begin(self) -> None:
        """Another reply."""
        self._given, self._ends = 0, self._clock()

    def give(self, samples: int) -> None:
        """More of it; if everything before has been played, there was a gap."""
        self._ends = max(self._ends, self._clock()) + samples / SAMPLE_RATE
        self._given += samples

    def stop(self) -> None:
        """The rest is thrown away."""
        self._given, self._ends = self.heard, self._clock()

    @property
    def begun(self) -> bool:
        """Whether there was any sound."""
        return self._given > 0

    @property
    def playing(self) -> bool:
        """Whether there is sound left."""
        return self._ends > self._clock()

    @property
    def heard(self) -> int:
        """Samples of the reply played by now."""
        left = max(0.0, self._ends - self._clock())
        return max(0, self._given - round(left * SAMPLE_RATE))
