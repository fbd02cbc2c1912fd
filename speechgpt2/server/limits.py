"""Who is let in, and how much may wait for a slow reader."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):
    """Not now: `reason` is `full`, `per_key` or `draining`."""

    def __init__(self, reason: str):
        super().__init__(
            {
                "full": "All slots are taken.",
                "per_key": "Too many sessions with this key.",
                "draining": "The server is shutting down.",
            }[reason]
        )
        self.reason = reason


class Admission:
    """Counts who is inside. A place is given at once or refused at once, and given back once, whatever happens."""

    def __init__(self, places: int, per_key: int = 0):
        self.places, self.per_key = places, per_key
        self.draining = False
        self._inside: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are inside."""
        return self._inside.total()

    @contextmanager
    def place(self, name: str) -> Iterator[None]:
        """A place for the caller `name` while the block runs. Errors: `Refused`."""
        if self.draining:
            raise Refused("draining")
        if self.taken >= self.places:
            raise Refused("full")
        if self.per_key and self._inside[name] >= self.per_key:
            raise Refused("per_key")
        self._inside[name] += 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            self._inside += Counter()  # forgets those at zero


class Overflow(Exception):
    """The reader is too slow: more waits than may wait."""


class Outbox:
    """Messages on their way to one socket, at most `limit` bytes of them."""

    def __init__(self, limit: int):
        self.limit, self.waiting = limit, 0
        self._messages: deque[str] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, message: str) -> None:
        """Queue a message. Errors: `Overflow`, after which nothing is queued any more."""
        if self._closed:
            return
        if self.waiting + len(message) > self.limit:
            self._closed = True
            self._ready.set()
            raise Overflow
        self._messages.append(message)
        self.waiting += len(message)
        self._ready.set()

    async def get(self) -> str | None:
        """The next message; None when the outbox is closed and empty."""
        while not self._messages:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        message = self._messages.popleft()
        self.waiting -= len(message)
        return message

    def close(self) -> None:
        """Let what is queued go out, and take no more."""
        self._closed = True
        self._ready.set()

    def discard(self) -> None:
        """Nothing goes out any more."""
        self.close()
        self._messages.clear()
        self.waiting = 0
