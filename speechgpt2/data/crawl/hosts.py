"""The times of requests and the robots.txt of hosts, shared by all workers."""

from __future__ import annotations

from typing import NamedTuple

from speechgpt2.data.crawl.database import Database


class RobotsText(NamedTuple):
    """The response for a robots.txt; `status` is 0 if the host could not be reached."""

    status: int
    body: str


class Hosts:
    """Per-host state. `lease` is how many seconds a worker waits for another one that fetches a robots.txt."""

    def __init__(self, database: Database, lease: float):
        self._db, self._lease = database, lease

    def reserve(self, host: str, delay: float) -> float:
        """Reserve the next request to `host`; the following one comes `delay` seconds later.

        Returns:
            Seconds to wait.
        """
        now = self._db.clock()
        with self._db.writing():
            self._db.run("INSERT OR IGNORE INTO host (name) VALUES (?)", host)
            slot = max(now, self._db.fetch_one("SELECT next_at FROM host WHERE name = ?", host)[0])
            self._db.run("UPDATE host SET next_at = ? WHERE name = ?", slot + delay, host)
        return slot - now

    def pause(self, host: str, seconds: float) -> None:
        """Pause a host, as its Retry-After asked: no request for `seconds`."""
        with self._db.writing():
            until = self._db.clock() + seconds
            self._db.run("UPDATE host SET next_at = max(next_at, ?) WHERE name = ?", until, host)

    def robots(self, origin: str) -> RobotsText | None:
        """Return the robots.txt of `origin` if it is known and fresh."""
        query = "SELECT status, body FROM robots WHERE origin = ? AND status IS NOT NULL AND until > ?"
        row = self._db.fetch_one(query, origin, self._db.clock())
        return None if row is None else RobotsText(row["status"], row["body"])

    def claim_robots(self, origin: str) -> bool:
        """Claim the fetch of a robots.txt. False if another worker fetches it, or if it is known."""
        now = self._db.clock()
        with self._db.writing():
            row = self._db.fetch_one("SELECT until FROM robots WHERE origin = ?", origin)
            if row is not None and row["until"] > now:
                return False
            self._db.run("INSERT OR REPLACE INTO robots VALUES (?, NULL, NULL, ?)", origin, now + self._lease)
        return True

    def set_robots(self, origin: str, text: RobotsText, valid_seconds: float) -> None:
        """Store a response, which is valid for `valid_seconds`."""
        with self._db.writing():
            until = self._db.clock() + valid_seconds
            self._db.run("INSERT OR REPLACE INTO robots VALUES (?, ?, ?, ?)", origin, text.status, text.body, until)

    def give_up_robots(self, origin: str) -> None:
        """Release the claim of `claim_robots` without a response."""
        with self._db.writing():
            self._db.run("DELETE FROM robots WHERE origin = ? AND status IS NULL", origin)
