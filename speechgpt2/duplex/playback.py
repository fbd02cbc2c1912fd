"""How much of a reply its listener can have heard: what was passed on, played from the first sample on without a stop.

Only the client knows exactly, and may tell later (`truncate`). This is what is assumed until then.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.types import SAMPLE_RATE


class PlaybackClock:
    """A player that plays what it is given, at once.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._given = 0
        self._ends = 0.0  # when all that was given will have been played

    def start_reply(self) -> None:
        """Begin another reply."""
        self._given, self._ends = 0, self._clock()

    def add(self, samples: int) -> None:
        """Give it more audio. If everything before has been played, there was a gap."""
        self._ends = max(self._ends, self._clock()) + samples / SAMPLE_RATE
        self._given += samples

    def stop(self) -> None:
        """Throw the rest away."""
        self._given, self._ends = self.played, self._clock()

    @property
    def playing(self) -> bool:
        """Whether audio is left."""
        return self._ends > self._clock()

    @property
    def played(self) -> int:
        """Samples of the reply played by now."""
        left = max(0.0, self._ends - self._clock())
        return max(0, self._given - round(left * SAMPLE_RATE))
