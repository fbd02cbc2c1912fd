"""An estimate of how much of a reply has been played, if the client plays audio as soon as it arrives.

Only the client knows it exactly, and may report it later (`truncate`). Until then this estimate is used.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.types import SAMPLE_RATE


class PlaybackClock:
    """A model of the client's player, which plays audio as soon as it arrives.

    Args:
        clock: Returns the time in seconds.

    Attributes:
        ends: When all audio of the reply will have been played, by the clock.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._received = 0  # samples of the reply
        self.ends = 0.0

    def start_reply(self) -> None:
        """Start another reply."""
        self._received, self.ends = 0, self._clock()

    def add(self, samples: int) -> None:
        """Add more audio of the reply. If all earlier audio has been played, playback has paused until now."""
        self.ends = max(self.ends, self._clock()) + samples / SAMPLE_RATE
        self._received += samples

    def stop(self) -> None:
        """Drop audio that has not been played."""
        self._received, self.ends = self.played, self._clock()

    @property
    def playing(self) -> bool:
        """Whether audio is left to play."""
        return self.ends > self._clock()

    @property
    def played(self) -> int:
        """Samples of the reply played by now."""
        left = max(0.0, self.ends - self._clock())
        return max(0, self._received - round(left * SAMPLE_RATE))
