"""The bounded queue between a session and its client."""

from __future__ import annotations

import asyncio
from collections import deque


class SlowConsumerError(Exception):
    """The client reads too slowly: the outbound queue is full."""


class OutboundQueue:
    """Messages on their way to one client, at most `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.queued_bytes = limit, 0
        self._messages: deque[str | bytes] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, message: str | bytes) -> None:
        """Queue a message; a closed queue ignores it.

        Raises:
            SlowConsumerError: The message does not fit. The queue is closed then.
        """
        if self._closed:
            return
        if self.queued_bytes + len(message) > self.limit:
            self._closed = True
            self._ready.set()
            raise SlowConsumerError
        self._messages.append(message)
        self.queued_bytes += len(message)
        self._ready.set()

    async def get(self) -> str | bytes | None:
        """Wait for the next message; None when the queue is closed and empty."""
        while not self._messages:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        message = self._messages.popleft()
        self.queued_bytes -= len(message)
        return message

    def close(self) -> None:
        """Accept no more messages; those in the queue can still be read."""
        self._closed = True
        self._ready.set()

    def discard(self) -> None:
        """Close the queue and drop its messages."""
        self.close()
        self._messages.clear()
        self.queued_bytes = 0
