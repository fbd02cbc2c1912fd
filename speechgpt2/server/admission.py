"""Admission control: how many sessions a server accepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MESSAGES = {
    "full": "All slots are taken.",
    "per_key": "Too many sessions with this key.",
    "draining": "The server is shutting down.",
    "failed": "The engine has failed.",
}


class AdmissionError(Exception):
    """A session is rejected for now; `reason` is `full`, `per_key`, `draining` or `failed`."""

    def __init__(self, reason: str):
        super().__init__(MESSAGES[reason])
        self.reason = reason


class Admission:
    """Counts sessions against a capacity. Admits or rejects at once, without a queue.

    Args:
        capacity: Sessions at the same time.
        sessions_per_key: Sessions at the same time with one API key; 0 for no such limit.
        engine_alive: Whether the engine works.
    """

    def __init__(self, capacity: int, sessions_per_key: int = 0, engine_alive: Callable[[], bool] = lambda: True):
        self.capacity, self.sessions_per_key, self.engine_alive = capacity, sessions_per_key, engine_alive
        self.draining = False
        self._active: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """Sessions admitted and not yet ended."""
        return self._active.total()

    @contextmanager
    def admit(self, key_id: str) -> Iterator[None]:
        """Hold one session of the API key `key_id` while the block runs.

        Raises:
            AdmissionError: The engine has failed, the server drains or is full, or the key has too many sessions.
        """
        if not self.engine_alive():
            raise AdmissionError("failed")
        if self.draining:
            raise AdmissionError("draining")
        if self.active >= self.capacity:
            raise AdmissionError("full")
        if self.sessions_per_key and self._active[key_id] >= self.sessions_per_key:
            raise AdmissionError("per_key")
        self._active[key_id] += 1
        try:
            yield
        finally:
            self._active[key_id] -= 1
            self._active += Counter()  # drops entries that are zero
