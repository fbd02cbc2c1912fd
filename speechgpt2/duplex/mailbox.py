"""Events of several sources on their way to one reader, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from speechgpt2.notifier import AsyncNotifier

E = TypeVar("E")
T = TypeVar("T")


class Mailbox(Generic[E]):
    """What was put in and not yet read, in order; closing it ends reading when all has been read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[E] = deque()
        self._closed = False
        self._notifier = AsyncNotifier()

    def put(self, event: E) -> None:
        """An event for the reader; none are taken when closed."""
        with self._lock:
            if not self._closed:
                self._queue.append(event)
                self._notifier.notify()

    def retract(self, begins: type[E], kinds: tuple[type[E], ...]) -> list[E]:
        """Take out what was not yet read of `kinds`, after the last event that `begins` something; returns it."""
        with self._lock:
            queue = list(self._queue)
            last = max((i for i, event in enumerate(queue) if isinstance(event, begins)), default=-1)
            gone = [event for event in queue[last + 1 :] if isinstance(event, kinds)]
            self._queue = deque(
                queue[: last + 1] + [event for event in queue[last + 1 :] if not isinstance(event, kinds)]
            )
            return gone

    def close(self) -> None:
        """Nothing more comes."""
        with self._lock:
            self._closed = True
            self._notifier.notify()

    async def read(self, source: AsyncIterator[T], tell: Callable[[T], None]) -> AsyncIterator[E]:
        """All events, while those of `source` are handed to `tell`, which may put in some more."""
        notified = self._notifier.attach()
        pump = asyncio.create_task(self._pump(source, tell))
        try:
            while True:
                notified.clear()
                while (event := self._next()) is not None:
                    yield event
                if self._closed:
                    break
                await notified.wait()
            if pump.done():
                pump.result()
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    def _next(self) -> E | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    async def _pump(self, source: AsyncIterator[T], tell: Callable[[T], None]) -> None:
        try:
            async for event in source:
                tell(event)
        finally:
            self.close()
