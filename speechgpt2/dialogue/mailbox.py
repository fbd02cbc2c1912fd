"""Events of several sources on their way to one reader, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

E = TypeVar("E")
T = TypeVar("T")


class Mailbox(Generic[E]):
    """What was put in and not yet read, in order; closing it ends reading when all has been read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[E] = deque()
        self._closed = False
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, event: E) -> None:
        """An event for the reader; none are taken when closed."""
        with self._lock:
            if not self._closed:
                self._queue.append(event)
                self._ring()

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
            self._ring()

    async def read(self, source: AsyncIterator[T], tell: Callable[[T], None]) -> AsyncIterator[E]:
        """All events, while those of `source` are handed to `tell`, which may put in some more."""
        bell = asyncio.Event()
        with self._lock:
            self._reader = asyncio.get_running_loop(), bell
        pump = asyncio.create_task(self._pump(source, tell))
        try:
            while True:
                bell.clear()
                while (event := self._next()) is not None:
                    yield event
                if self._closed:
                    break
                await bell.wait()
            if pump.done():
                pump.result()
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            with self._lock:
                self._reader = None

    def _next(self) -> E | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    async def _pump(self, source: AsyncIterator[T], tell: Callable[[T], None]) -> None:
        try:
            async for event in source:
                tell(event)
        finally:
            self.close()

    def _ring(self) -> None:
        if self._reader is not None and not self._reader[0].is_closed():
            self._reader[0].call_soon_threadsafe(self._reader[1].set)
