"""The queue of events from the engine's thread to the reader of a session.

When a reply is interrupted or rolled back, its events are dropped at once: those in the queue and those still to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from speechgpt2.notifier import AsyncNotifier
from speechgpt2.types import AudioDelta, Error, Event, ReplyDone


class SessionEventQueue:
    """The event queue of one session.

    Args:
        on_audio_read: Called after audio was read, because the engine may then generate more.

    Attributes:
        lock: Guards the queue and the session's own state.
        open: Whether events are accepted.
        reply: The reply whose events are accepted, until its end is read.
        reply_samples: Samples of that reply so far, read or in the queue.
        unread_samples: Samples in the queue.
    """

    def __init__(self, on_audio_read: Callable[[], None]):
        self.lock = threading.RLock()
        self.open = True
        self.reply: int | None = None
        self.reply_samples = 0
        self.unread_samples = 0
        self._on_audio_read = on_audio_read
        self._queue: deque[tuple[int | None, Event]] = deque()
        self._notifier = AsyncNotifier()

    def begin_reply(self, reply: int) -> None:
        """Accept the events of `reply` from now on."""
        self.reply, self.reply_samples = reply, 0

    def put(self, reply: int | None, event: Event) -> None:
        """Add an event of `reply`, or one that belongs to no reply. Events of other replies are dropped."""
        with self.lock:
            if not self.open or (reply is not None and reply != self.reply):
                return
            if isinstance(event, AudioDelta):
                self.reply_samples += len(event.pcm)
                self.unread_samples += len(event.pcm)
            self._queue.append((reply, event))
            self._notifier.notify()

    def drop_reply(self) -> bool:
        """Drop the reply's unread events and those to come.

        Returns:
            Whether there was a reply whose end was not read.
        """
        with self.lock:
            dropped, self.reply = self.reply, None
            self._queue = deque(entry for entry in self._queue if entry[0] is None)
            self.unread_samples = 0
            return dropped is not None

    def get(self) -> Event | None:
        """Return the next event, if there is one."""
        with self.lock:
            if not self._queue:
                return None
            reply, event = self._queue.popleft()
            if reply is not None and isinstance(event, (ReplyDone, Error)):
                self.reply = None
            if not isinstance(event, AudioDelta):
                return event
            self.unread_samples -= len(event.pcm)
        self._on_audio_read()
        return event

    def close(self) -> None:
        """Accept no more events. Those in the queue can still be read."""
        with self.lock:
            self.open = False
            self._notifier.notify()

    async def read(self) -> AsyncIterator[Event]:
        """Yield all events until the queue is closed and empty. For one reader."""
        notified = self._notifier.attach()
        while True:
            notified.clear()
            while (event := self.get()) is not None:
                yield event
            if not self.open:
                return
            await notified.wait()
