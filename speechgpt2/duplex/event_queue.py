"""A queue of events from several sources, on any thread, for one reader."""

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


class EventQueue(Generic[E]):
    """A queue for one reader. After `close`, the reader gets the remaining events and stops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[E] = deque()
        self._closed = False
        self._notifier = AsyncNotifier()

    def put(self, event: E) -> None:
        """Add an event. A closed queue drops it."""
        with self._lock:
            if not self._closed:
                self._queue.append(event)
                self._notifier.notify()

    def retract(self, start: type[E], kinds: tuple[type[E], ...]) -> list[E]:
        """Remove and return the unread events of some `kinds` after the last event of type `start`."""
        with self._lock:
            events = list(self._queue)
            first = 1 + max((i for i, event in enumerate(events) if isinstance(event, start)), default=-1)
            retracted = [event for event in events[first:] if isinstance(event, kinds)]
            kept = [event for event in events[first:] if not isinstance(event, kinds)]
            self._queue = deque(events[:first] + kept)
            return retracted

    def close(self) -> None:
        """Accept no more events."""
        with self._lock:
            self._closed = True
            self._notifier.notify()

    async def read(self, source: AsyncIterator[T], handle: Callable[[T], None]) -> AsyncIterator[E]:
        """Yield all events. Meanwhile `handle`, which may put more, is called with each event of `source`."""
        notified = self._notifier.attach()
        pump = asyncio.create_task(self._pump(source, handle))
        try:
            while True:
                notified.clear()
                while (event := self._get()) is not None:
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

    def _get(self) -> E | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    async def _pump(self, source: AsyncIterator[T], handle: Callable[[T], None]) -> None:
        try:
            async for event in source:
                handle(event)
        finally:
            self.close()
