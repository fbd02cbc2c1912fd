"""Events on their way from the engine's thread to a session's reader.

A reply that is interrupted or taken back falls silent with the call: its events, those in the queue and those still to
be made, reach nobody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from speechgpt2.notifier import AsyncNotifier
from speechgpt2.types import AudioDelta, Error, Event, ReplyDone


class Mailbox:
    """One session's. `wake` tells the engine that sound was read, and more may be made."""

    def __init__(self, wake: Callable[[], None]):
        self.lock = threading.RLock()  # also of the session's own state
        self.open = True
        self.reply: int | None = None  # whose events are passed on, until its end is read
        self.made = 0  # samples of it so far
        self.unread = 0  # samples in the queue
        self._wake = wake
        self._queue: deque[tuple[int | None, Event]] = deque()
        self._notifier = AsyncNotifier()

    def begin(self, reply: int) -> None:
        """From now on the events of `reply` are passed on."""
        self.reply, self.made = reply, 0

    def put(self, reply: int | None, event: Event) -> None:
        """An event of `reply`, or of none."""
        with self.lock:
            if not self.open or (reply is not None and reply != self.reply):
                return
            if isinstance(event, AudioDelta):
                self.made += len(event.pcm)
                self.unread += len(event.pcm)
            self._queue.append((reply, event))
            self._notifier.notify()

    def silence(self) -> bool:
        """Nothing more of the reply; returns whether there was one whose end was not read."""
        with self.lock:
            silenced, self.reply = self.reply, None
            self._queue = deque(entry for entry in self._queue if entry[0] is None)
            self.unread = 0
            return silenced is not None

    def take(self) -> Event | None:
        """The next event, if there is one."""
        with self.lock:
            if not self._queue:
                return None
            reply, event = self._queue.popleft()
            if reply is not None and isinstance(event, (ReplyDone, Error)):
                self.reply = None
            if not isinstance(event, AudioDelta):
                return event
            self.unread -= len(event.pcm)
        self._wake()
        return event

    def close(self) -> None:
        """No more comes than is here."""
        with self.lock:
            self.open = False
            self._notifier.notify()

    async def read(self) -> AsyncIterator[Event]:
        """All events to come, one by one."""
        notified = self._notifier.attach()
        while True:
            notified.clear()
            while (event := self.take()) is not None:
                yield event
            if not self.open:
                return
            await notified.wait()
