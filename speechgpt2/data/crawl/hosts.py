"""How hosts want to be treated, shared by all workers: when the next request may come, and their robots.txt."""

from __future__ import annotations

from typing import NamedTuple

from speechgpt2.data.crawl.database import Database


class RobotsText(NamedTuple):
    """A robots.txt as it was answered; `status` 0 where the host could not be reached."""

    status: int
    body: str


class Hosts:
    """`lease` is how long another worker's fetching of a robots.txt is waited for."""

    def __init__(self, database: Database, lease: float):
        self._db, self._lease = database, lease

    def reserve(self, host: str, delay: float) -> float:
        """Seconds to wait for the next request to `host`; the one after it comes `delay` seconds later."""
        now = self._db.clock()
        with self._db.writing():
            self._db.run("INSERT OR IGNORE INTO host (name) VALUES (?)", host)
            slot = max(now, self._db.one("SELECT next_at FROM host WHERE name = ?", host)[0])
            self._db.run("UPDATE host SET next_at = ? WHERE name = ?", slot + delay, host)
        return slot - now

    def rest(self, host: str, seconds: float) -> None:
        """The host asked for a pause: no request before it is over."""
        with self._db.writing():
            until = self._db.clock() + seconds
            self._db.run("UPDATE host SET next_at = max(next_at, ?) WHERE name = ?", until, host)

    def robots(self, origin: str) -> RobotsText | None:
        """The robots.txt of `origin`, if it is known and fresh."""
        query = "SELECT status, body FROM robots WHERE origin = ? AND status IS NOT NULL AND until > ?"
        row = self._db.one(query, origin, self._db.clock())
        return None if row is None else RobotsText(row["status"], row["body"])

    def claim_robots(self, origin: str) -> bool:
        """Whether the caller is the one to fetch it; False while another does, or when it is known."""
        now = self._db.clock()
        with self._db.writing():
            row = self._db.one("SELECT until FROM robots WHERE origin = ?", origin)
            if row is not None and row["until"] > now:
                return False
            self._db.run("INSERT OR REPLACE INTO robots VALUES (?, NULL, NULL, ?)", origin, now + self._lease)
        return True

    def set_robots(self, origin: str, text: RobotsText, keep: float) -> None:
        """Note what was answered, for `keep` seconds."""
        with self._db.writing():
            until = self._db.clock() + keep
            self._db.run("INSERT OR REPLACE INTO robots VALUES (?, ?, ?, ?)", origin, text.status, text.body, until)

    def give_up_robots(self, origin: str) -> None:
        """The caller of `claim_robots` stopped before it had an answer."""
        with self._db.writing():
            self._db.run("DELETE FROM robots WHERE origin = ? AND status IS NULL", origin)
