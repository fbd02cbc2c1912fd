"""How threads wake a reader who waits in an event loop."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung from any thread; heard by the one reader who has it, `take`n in the reader's own loop.

    A reader clears it, looks for what is there, and waits only then: what comes in between rings again.
    """

    def __init__(self) -> None:
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def take(self) -> asyncio.Event:
        """From now on the event that is set by every ring, in the running loop."""
        self._reader = asyncio.get_running_loop(), asyncio.Event()
        return self._reader[1]

    def ring(self) -> None:
        """Nobody hears it where nobody has taken the bell, or the reader's loop is over."""
        if self._reader is not None and not self._reader[0].is_closed():
            self._reader[0].call_soon_threadsafe(self._reader[1].set)
