"""The two ways in which an item does not arrive: it is refused for a reason, or it is tried again later."""

from __future__ import annotations


class Rejected(Exception):
    """An item is given up: `reason` is one word for counting, `detail` a line for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class TryLater(Exception):
    """A fault that may pass. `after` seconds if the server named them; `progress` if the attempt brought us forward."""

    def __init__(self, detail: str, after: float | None = None, progress: bool = False):
        super().__init__(detail)
        self.detail, self.after, self.progress = detail, after, progress
