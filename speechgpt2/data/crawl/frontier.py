"""The items of a crawl and their states, shared by all workers.

An item is `open`, `done` or `rejected`. An open item can be leased when its `due` time has come. A lease sets `owner`
and moves `due` to the end of the lease, so an item whose worker died becomes due again. Every change is one
transaction, so a kill cannot damage it. This module knows neither HTTP nor licences.

The result never depends on the speed of workers: of equal recordings the one with the smallest URL is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.frontier_reader import DOCUMENTS, CrawlItem, FrontierReader, Link, item_of_row
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.tombstones import AUDIO, CONTENT, URL, Tombstones
from speechgpt2.data.crawl.urls import host_of, item_id

# The next item that may be leased: its host is not paused and has fewer leases than `per_host`.
_NEXT_DUE = """
SELECT item.id FROM host JOIN item ON item.id = (
    SELECT id FROM item WHERE host = host.name AND state = 'open' AND due <= :now ORDER BY due, id LIMIT 1)
WHERE host.next_at <= :now AND (
    SELECT count(*) FROM item WHERE host = host.name AND state = 'open' AND due > :now AND owner IS NOT NULL
) < :per_host
ORDER BY host.next_at, host.name LIMIT 1
"""

# What is derived from a source: everything that was found through it. Links of a page to other pages and feeds do not
# count.
_DERIVED = """
WITH RECURSIVE below (id, kind) AS (
    SELECT id, kind FROM item WHERE url = :url OR (:url LIKE '%/' AND substr(url, 1, length(:url)) = :url)
        OR id IN (SELECT id FROM hop WHERE url = :url OR (:url LIKE '%/' AND substr(url, 1, length(:url)) = :url))
    UNION
    SELECT item.id, item.kind FROM below JOIN link ON link.parent = below.id JOIN item ON item.id = link.child
    WHERE NOT (below.kind = 'page' AND item.kind IN ('page', 'feed', 'sitemap'))
)
SELECT item.* FROM item JOIN below ON item.id = below.id
"""


class LeaseLost(Exception):
    """The lease expired, or the item was taken down. The data that was fetched for it is dropped."""


class Frontier(FrontierReader):
    """The items of a `database`, for the worker process `owner`.

    Leases last `lease` seconds unless they are renewed.
    """

    def __init__(self, database: Database, owner: str, lease: float):
        super().__init__(database)
        self.owner, self.lease = owner, lease
        self._tombstones = Tombstones(database)

    # Adding

    def add(self, links: Iterable[Link], parent: str = "") -> None:
        """Add links. A known item gets one more parent; a page that was found by a shorter path is open again."""
        with self._db.writing():
            self._add(links, parent)

    def _add(self, links: Iterable[Link], parent: str) -> None:
        now = self._db.clock()
        for link in links:
            id, host = item_id(link.url), host_of(link.url)
            is_new = self._db.run(
                "INSERT OR IGNORE INTO item (id, url, kind, host, depth, due) VALUES (?, ?, ?, ?, ?, ?)",
                id, link.url, link.kind, host, link.depth, now,
            )  # fmt: skip
            taken_down = self._tombstones.covers_url(link.url)
            facts = json.dumps({} if taken_down else link.facts, ensure_ascii=False, sort_keys=True)
            self._db.run("INSERT OR REPLACE INTO link VALUES (?, ?, ?)", parent, id, facts)
            self._db.run("INSERT OR IGNORE INTO host (name) VALUES (?)", host)
            if is_new and taken_down:
                _reject(self._db, id, ItemRejected("taken-down", "its source was taken down"))
            elif not is_new and link.kind == "page":
                self._deepen(id, link.depth)

    def _deepen(self, id: str, depth: int) -> None:
        """Open a page again from which more links may be followed than when it was read."""
        if self._db.run("UPDATE item SET depth = ? WHERE id = ? AND kind = 'page' AND depth < ?", depth, id, depth):
            _reopen(self._db, "id = ? AND state = 'done'", id)

    def refresh(self) -> None:
        """Open documents again, and items that could not be reached."""
        marks = ", ".join("?" * len(DOCUMENTS))
        with self._db.writing():
            _reopen(self._db, f"state = 'done' AND kind IN ({marks})", *DOCUMENTS)
            _reopen(self._db, "state = 'rejected' AND reason = 'gave-up'")

    # Leases

    def lease_item(self, per_host: int) -> CrawlItem | None:
        """Lease an item that is due, or None."""
        now = self._db.clock()
        if self._db.fetch_one(_NEXT_DUE, now=now, per_host=per_host) is None:  # the common case, without a write lock
            return None
        with self._db.writing():
            row = self._db.fetch_one(_NEXT_DUE, now=now, per_host=per_host)
            if row is None:
                return None
            self._db.run("UPDATE item SET owner = ?, due = ? WHERE id = ?", self.owner, now + self.lease, row["id"])
            return self.get(row["id"])

    def renew(self) -> None:
        """Renew this owner's leases that have not expired; call it a few times per `lease`."""
        now = self._db.clock()
        with self._db.writing():
            self._db.run(
                "UPDATE item SET due = ? WHERE owner = ? AND state = 'open' AND due > ?",
                now + self.lease, self.owner, now,
            )  # fmt: skip

    def release(self, id: str) -> None:
        """Release a lease; nothing happens if it is no longer held."""
        with self._db.writing():
            now = self._db.clock()
            self._db.run("UPDATE item SET owner = NULL, due = ? WHERE id = ? AND owner = ?", now, id, self.owner)

    def retry(self, id: str, after: float, count: bool = True) -> None:
        """Release the item until `after` seconds have passed; `count` it as a failed attempt. Raises `LeaseLost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run(
                "UPDATE item SET owner = NULL, due = ?, attempts = attempts + ? WHERE id = ?",
                self._db.clock() + after, int(count), id,
            )  # fmt: skip

    def remember(self, id: str, validator: dict[str, str]) -> None:
        """Store which version the partial file has. Raises `LeaseLost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run("UPDATE item SET validator = ? WHERE id = ?", json.dumps(validator), id)

    # Results

    def reject(self, id: str, rejection: ItemRejected) -> None:
        """Reject the item. Raises `LeaseLost`."""
        with self._db.writing():
            self._check_lease(id)
            _reject(self._db, id, rejection)

    def finish_document(
        self, id: str, links: Sequence[Link], validator: dict[str, str], outcome: dict[str, Any]
    ) -> None:
        """Finish a document and add its links, in one transaction. Raises `LeaseLost` and `ItemRejected`."""
        with self._db.writing():
            item = self._check_lease(id)
            self._check_hops(item, outcome)
            self._add(links, id)
            self._db.run("UPDATE item SET validator = ? WHERE id = ?", json.dumps(validator), id)
            _finish(self._db, id, outcome)
            _reopen(
                self._db, "id = ? AND kind = 'page' AND depth > ?", id, outcome["depth"]
            )  # a shorter path was found meanwhile

    def finish_unchanged(self, id: str) -> None:
        """Finish a document that has not changed. Raises `LeaseLost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run("UPDATE item SET state = 'done', owner = NULL, attempts = 0 WHERE id = ?", id)

    def finish_recording(
        self, id: str, sha256: str, fingerprint: str, size: int, seconds: float, outcome: dict[str, Any]
    ) -> list[CrawlItem]:
        """Finish a recording. Of equal recordings the one with the smallest URL is kept; the others are duplicates.

        Returns:
            The duplicates, which are rejected.

        Raises:
            LeaseLost: another worker has the item.
            ItemRejected: the content was taken down.
        """
        with self._db.writing():
            item = self._check_lease(id)
            self._check_hops(item, outcome)
            if self._tombstones.covers_content(sha256, fingerprint):
                raise ItemRejected("taken-down", "its content was taken down")
            self._db.run(
                "UPDATE item SET sha256 = ?, fingerprint = ?, bytes = ?, seconds = ? WHERE id = ?",
                sha256, fingerprint, size, seconds, id,
            )  # fmt: skip
            _finish(self._db, id, outcome)
            copies = _copies(self._db, fingerprint)
            for copy in copies[1:]:
                _reject(self._db, copy.id, ItemRejected("duplicate", f"the same audio as {copies[0].url}"))
        return copies[1:]

    def _check_lease(self, id: str) -> CrawlItem:
        row = self._db.fetch_one("SELECT * FROM item WHERE id = ? AND state = 'open' AND owner = ?", id, self.owner)
        if row is None:
            raise LeaseLost(id)
        return item_of_row(row)

    def _check_hops(self, item: CrawlItem, outcome: dict[str, Any]) -> None:
        """Reject an item whose source was taken down while it was fetched."""
        if any(self._tombstones.covers_url(url) for url in (item.url, *outcome.get("hops", ()))):
            raise ItemRejected("taken-down", "its source was taken down")

    # Later changes

    def withdraw(self, id: str, rejection: ItemRejected) -> None:
        """Reject an item that was kept, and open its duplicates again."""
        with self._db.writing():
            _reopen(self._db, "reason = 'duplicate' AND fingerprint = (SELECT fingerprint FROM item WHERE id = ?)", id)
            _reject(self._db, id, rejection)

    def reconsider(self, id: str) -> None:
        """Open a rejected item again."""
        with self._db.writing():
            _reopen(self._db, "id = ? AND state = 'rejected'", id)

    def take_down(self, url: str) -> list[CrawlItem]:
        """Reject `url` and everything derived from it, and never accept their content again.

        Returns:
            The items before the change.
        """
        with self._db.writing():
            self._tombstones.add(URL, url)
            derived = {row["id"]: item_of_row(row) for row in self._db.fetch_all(_DERIVED, url=url)}
            for item in list(derived.values()):
                self._tombstones.add(URL, item.url)
                if item.sha256 and item.fingerprint:
                    self._tombstones.add(CONTENT, item.sha256)
                    self._tombstones.add(AUDIO, item.fingerprint)
                    copies = self._db.fetch_all("SELECT * FROM item WHERE fingerprint = ?", item.fingerprint)
                    derived.update((row["id"], item_of_row(row)) for row in copies)
            for id in derived:
                _reject(self._db, id, ItemRejected("taken-down", f"with {url}"))
                self._db.run("UPDATE item SET outcome = '{}', validator = '{}', settled = 1 WHERE id = ?", id)
                self._db.run("UPDATE link SET facts = '{}' WHERE child = ?", id)
        return list(derived.values())

    def settle(self, id: str) -> None:
        """Record that the item's files are in their final place."""
        with self._db.writing():
            self._db.run("UPDATE item SET settled = 1 WHERE id = ?", id)


# Changes of rows, within a transaction of the caller


def _reopen(db: Database, condition: str, *values: Any) -> None:
    changes = "state = 'open', owner = NULL, attempts = 0, reason = NULL, detail = NULL"
    db.run(f"UPDATE item SET {changes}, due = ? WHERE {condition}", db.clock(), *values)


def _finish(db: Database, id: str, outcome: dict[str, Any]) -> None:
    text = json.dumps(outcome, ensure_ascii=False)
    changes = "state = 'done', owner = NULL, attempts = 0, reason = NULL, detail = NULL, settled = 0"
    db.run(f"UPDATE item SET {changes}, outcome = ? WHERE id = ?", text, id)
    for url in outcome.get("hops", ()):
        db.run("INSERT OR IGNORE INTO hop VALUES (?, ?)", id, url)


def _reject(db: Database, id: str, rejection: ItemRejected) -> None:
    changes = "state = 'rejected', owner = NULL, reason = ?, detail = ?"
    db.run(f"UPDATE item SET {changes} WHERE id = ?", rejection.reason, rejection.detail, id)


def _copies(db: Database, fingerprint: str) -> list[CrawlItem]:
    """Return the recordings with equal audio; the one to keep is first."""
    query = "SELECT * FROM item WHERE fingerprint = ? AND (state = 'done' OR reason = 'duplicate')"
    return sorted(map(item_of_row, db.fetch_all(query, fingerprint)), key=lambda item: item.url)
