"""The two errors of an item: rejected with a reason, or to be tried again later."""

from __future__ import annotations


class ItemRejected(Exception):
    """An item is rejected: `reason` is one word for statistics, `detail` a line for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class RetryLater(Exception):
    """A temporary error. `after`: seconds that the server named. `progress`: whether the attempt received new bytes."""

    def __init__(self, detail: str, after: float | None = None, progress: bool = False):
        super().__init__(detail)
        self.detail, self.after, self.progress = detail, after, progress
