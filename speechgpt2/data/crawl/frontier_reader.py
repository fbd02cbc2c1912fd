"""Reads the items of a crawl: one, all that meet a condition, and their totals.

`frontier.Frontier` adds the changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from speechgpt2.data.crawl.database import Database

RECORDINGS = ("media", "file", "video")
DOCUMENTS = ("feed", "sitemap", "page", "folder", "videos")


@dataclass(frozen=True)
class Link:
    """A URL to fetch.

    Attributes:
        url: the address.
        kind: one of `RECORDINGS` or `DOCUMENTS`.
        depth: how many further links may be followed from it, one after another.
        facts: what its parent states: licence, level of that statement, title, language, transcript.
    """

    url: str
    kind: str
    depth: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CrawlItem:
    """A row of the frontier.

    Attributes:
        depth: how many further links may be followed, one after another.
        state: "open", "done" or "rejected".
        validator: the version of the content that is stored (ETag, date).
        outcome: the data for the record of a finished item; `{}` before.
    """

    id: str
    url: str
    kind: str
    host: str
    depth: int
    state: str
    attempts: int
    validator: dict[str, str]
    reason: str | None
    detail: str | None
    sha256: str | None
    fingerprint: str | None
    bytes: int | None
    seconds: float | None
    outcome: dict[str, Any]


@dataclass(frozen=True)
class Totals:
    """Counts of a crawl; hours and bytes of the kept recordings."""

    open: int
    documents: int
    recordings: int
    hours: float
    bytes: int
    rejected: dict[str, int]


class FrontierReader:
    """Reads the items of a `database`."""

    def __init__(self, database: Database):
        self._db = database

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._db.clock()

    def get(self, id: str) -> CrawlItem:
        """The item `id`, which exists."""
        return item_of_row(self._db.fetch_one("SELECT * FROM item WHERE id = ?", id))

    def knows(self, id: str) -> bool:
        """Whether there is such an item, open or done."""
        return self._db.fetch_one("SELECT 1 FROM item WHERE id = ? AND state <> 'rejected'", id) is not None

    def items(self, condition: str = "1", *values: Any) -> Iterator[CrawlItem]:
        """Items in the order of their ids, read a thousand at a time, so that memory stays small."""
        last_id = ""
        query = f"SELECT * FROM item WHERE id > ? AND ({condition}) ORDER BY id LIMIT 1000"
        while rows := self._db.fetch_all(query, last_id, *values):
            yield from map(item_of_row, rows)
            last_id = rows[-1]["id"]

    def facts(self, id: str) -> list[dict[str, Any]]:
        """Return the `Link.facts` of each parent of an item, in the order of the parents' ids."""
        rows = self._db.fetch_all("SELECT facts FROM link WHERE child = ? ORDER BY parent", id)
        return [json.loads(row["facts"]) for row in rows]

    def unsettled(self) -> list[CrawlItem]:
        """Return finished items whose files may not be in their final place."""
        return [
            item_of_row(row)
            for row in self._db.fetch_all("SELECT * FROM item WHERE settled = 0 AND state <> 'rejected'")
        ]

    def keeps(self, sha256: str) -> bool:
        """Whether a kept recording has this content."""
        return self._db.fetch_one("SELECT 1 FROM item WHERE sha256 = ? AND state = 'done'", sha256) is not None

    def next_due(self) -> float | None:
        """Return the seconds until an open item may be due, including leased ones; None if nothing is open."""
        due = "SELECT min(due) FROM item WHERE item.host = host.name AND state = 'open'"
        row = self._db.fetch_one(f"SELECT min(max(next_at, ({due}))) FROM host")
        return None if row[0] is None else max(0.0, row[0] - self._db.clock())

    def totals(self) -> Totals:
        """Count items, by an index only."""
        query = "SELECT state, reason, kind, count(*), total(seconds), total(bytes) FROM item GROUP BY 1, 2, 3"
        waiting = documents = recordings = 0
        seconds = size = 0.0
        rejected: dict[str, int] = {}
        for state, reason, kind, count, duration, length in self._db.fetch_all(query):
            if state == "open":
                waiting += count
            elif state == "rejected":
                rejected[reason] = rejected.get(reason, 0) + count
            elif kind in DOCUMENTS:
                documents += count
            else:
                recordings, seconds, size = recordings + count, seconds + duration, size + length
        return Totals(waiting, documents, recordings, seconds / 3600, int(size), rejected)


_COLUMNS = tuple(column.name for column in fields(CrawlItem))


def item_of_row(row: Any) -> CrawlItem:
    """Read an item from its database row."""
    values = {name: row[name] for name in _COLUMNS}
    values["validator"], values["outcome"] = json.loads(row["validator"]), json.loads(row["outcome"])
    return CrawlItem(**values)
