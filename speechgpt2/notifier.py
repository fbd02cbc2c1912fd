"""Notifications from any thread to one reader in an asyncio event loop."""

from __future__ import annotations

import asyncio


class AsyncNotifier:
    """Sets an `asyncio.Event` of one reader from any thread.

    The reader clears the event, looks for what is new, and only then waits, so that nothing that arrives in between is
    missed.
    """

    def __init__(self) -> None:
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def attach(self) -> asyncio.Event:
        """Return a new event that `notify` sets from now on. Call it in the reader's event loop."""
        self._reader = asyncio.get_running_loop(), asyncio.Event()
        return self._reader[1]

    def notify(self) -> None:
        """Set the reader's event. Without a reader, or after its loop has closed, nothing happens."""
        if self._reader is not None and not self._reader[0].is_closed():
            self._reader[0].call_soon_threadsafe(self._reader[1].set)
