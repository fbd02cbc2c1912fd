"""What is to be fetched and what became of it, shared by all workers of a crawl; no kill can break it.

An item is `open`, `done` or `rejected`. An open item can be taken when its `due` time has come; taking it is a lease:
`owner` is set and `due` moves to the lease's end, so that an item whose worker died is simply due again. Every change
is one transaction. Nothing here knows HTTP or what a licence means.

What is kept never depends on who was faster: of equal recordings the one with the smallest URL stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.tombstones import CONTENT, SOUND, URL, Tombstones
from speechgpt2.data.crawl.urls import host_of, item_id
from speechgpt2.data.crawl.verdicts import Rejected

RECORDINGS = ("media", "file", "video")
DOCUMENTS = ("feed", "sitemap", "page", "folder", "videos")

# What one worker may take now: the host is not resting, and has fewer leases than it is allowed.
_TAKE = """
SELECT item.id FROM host JOIN item ON item.id = (
    SELECT id FROM item WHERE host = host.name AND state = 'open' AND due <= :now ORDER BY due, id LIMIT 1)
WHERE host.next_at <= :now AND (
    SELECT count(*) FROM item WHERE host = host.name AND state = 'open' AND due > :now AND owner IS NOT NULL
) < :per_host
ORDER BY host.next_at, host.name LIMIT 1
"""

# What is derived from a source: all that it led to. A page's links to other pages and feeds are mere references.
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


@dataclass(frozen=True)
class Link:
    """That `url` is to be fetched as `kind`, and what its parent says of it; `depth` links may be followed from it."""

    url: str
    kind: str
    depth: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """A row of the frontier.

    validator  what the server said of the version at hand (ETag, date)
    outcome    what a finished item's record is made of; `{}` until then
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
    """Counts of a crawl; hours and bytes of what is kept."""

    open: int
    documents: int
    recordings: int
    hours: float
    bytes: int
    rejected: dict[str, int]


class Lost(Exception):
    """The lease ran out, or the item was taken down meanwhile: what was fetched for it is nobody's."""


class Frontier:
    """The items of `database`, for the worker process `owner`; leases last `lease` seconds unless renewed."""

    def __init__(self, database: Database, owner: str, lease: float):
        self._db, self.owner, self.lease = database, owner, lease
        self._tombstones = Tombstones(database)

    # Adding

    def add(self, links: Iterable[Link], parent: str = "") -> None:
        """Make links known; a known item gets one more parent, and a page found by a shorter way is open again."""
        with self._db.writing():
            self._add(links, parent)

    def _add(self, links: Iterable[Link], parent: str) -> None:
        now = self._db.clock()
        for link in links:
            id, host = item_id(link.url), host_of(link.url)
            new = self._db.run(
                "INSERT OR IGNORE INTO item (id, url, kind, host, depth, due) VALUES (?, ?, ?, ?, ?, ?)",
                id, link.url, link.kind, host, link.depth, now,
            )  # fmt: skip
            buried = self._tombstones.cover_url(link.url)
            facts = json.dumps({} if buried else link.facts, ensure_ascii=False, sort_keys=True)
            self._db.run("INSERT OR REPLACE INTO link VALUES (?, ?, ?)", parent, id, facts)
            self._db.run("INSERT OR IGNORE INTO host (name) VALUES (?)", host)
            if new and buried:
                self._reject(id, Rejected("taken-down", "its source was taken down"))
            elif not new and link.kind == "page":
                self._deepen(id, link.depth)

    def _deepen(self, id: str, depth: int) -> None:
        if self._db.run("UPDATE item SET depth = ? WHERE id = ? AND kind = 'page' AND depth < ?", depth, id, depth):
            self._reopen("id = ? AND state = 'done'", id)

    def _reopen(self, condition: str, *values: Any) -> int:
        changes = "state = 'open', owner = NULL, attempts = 0, reason = NULL, detail = NULL"
        return self._db.run(f"UPDATE item SET {changes}, due = ? WHERE {condition}", self._db.clock(), *values)

    def refresh(self) -> None:
        """Ask again for the documents, and for what could not be reached."""
        marks = ", ".join("?" * len(DOCUMENTS))
        with self._db.writing():
            self._reopen(f"state = 'done' AND kind IN ({marks})", *DOCUMENTS)
            self._reopen("state = 'rejected' AND reason = 'gave-up'")

    # Leases

    def take(self, per_host: int) -> Item | None:
        """Lease an item that is due, or None."""
        now = self._db.clock()
        if self._db.one(_TAKE, now=now, per_host=per_host) is None:  # most often; so nobody is kept from writing
            return None
        with self._db.writing():
            row = self._db.one(_TAKE, now=now, per_host=per_host)
            if row is None:
                return None
            self._db.run("UPDATE item SET owner = ?, due = ? WHERE id = ?", self.owner, now + self.lease, row["id"])
            return self.get(row["id"])

    def renew(self) -> None:
        """Prolong this owner's leases that have not run out; call it a few times per `lease`."""
        now = self._db.clock()
        with self._db.writing():
            self._db.run(
                "UPDATE item SET due = ? WHERE owner = ? AND state = 'open' AND due > ?",
                now + self.lease, self.owner, now,
            )  # fmt: skip

    def release(self, id: str) -> None:
        """Give a lease back unused; nothing happens if it is no longer held."""
        with self._db.writing():
            now = self._db.clock()
            self._db.run("UPDATE item SET owner = NULL, due = ? WHERE id = ? AND owner = ?", now, id, self.owner)

    def retry(self, id: str, after: float, count: bool = True) -> None:
        """Give the item back, to be taken again in `after` seconds; `count` it as a failed attempt. Errors: `Lost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run(
                "UPDATE item SET owner = NULL, due = ?, attempts = attempts + ? WHERE id = ?",
                self._db.clock() + after, int(count), id,
            )  # fmt: skip

    def remember(self, id: str, validator: dict[str, str]) -> None:
        """Note which version of the item the part on disk belongs to. Errors: `Lost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run("UPDATE item SET validator = ? WHERE id = ?", json.dumps(validator), id)

    # Ends

    def reject(self, id: str, refusal: Rejected) -> None:
        """End the item with a reason. Errors: `Lost`."""
        with self._db.writing():
            self._check_lease(id)
            self._reject(id, refusal)

    def finish_document(
        self, id: str, links: Sequence[Link], validator: dict[str, str], outcome: dict[str, Any]
    ) -> None:
        """End a feed, sitemap, page or folder and add what it links to, in one step. Errors: `Lost`, `Rejected`."""
        with self._db.writing():
            item = self._check_lease(id)
            self._check_hops(item, outcome)
            self._add(links, id)
            self._db.run("UPDATE item SET validator = ? WHERE id = ?", json.dumps(validator), id)
            self._finish(id, outcome)
            self._reopen("id = ? AND kind = 'page' AND depth > ?", id, outcome["depth"])  # deepened meanwhile

    def finish_unchanged(self, id: str) -> None:
        """End a document that is still what it was. Errors: `Lost`."""
        with self._db.writing():
            self._check_lease(id)
            self._db.run("UPDATE item SET state = 'done', owner = NULL, attempts = 0 WHERE id = ?", id)

    def finish_recording(
        self, id: str, sha256: str, fingerprint: str, size: int, seconds: float, outcome: dict[str, Any]
    ) -> list[Item]:
        """End a recording; of equal ones the smallest URL is kept, the others are rejected duplicates and returned.

        Errors: `Lost`; `Rejected` if its content was taken down.
        """
        with self._db.writing():
            item = self._check_lease(id)
            self._check_hops(item, outcome)
            if self._tombstones.cover_content(sha256, fingerprint):
                raise Rejected("taken-down", "its content was taken down")
            self._db.run(
                "UPDATE item SET sha256 = ?, fingerprint = ?, bytes = ?, seconds = ? WHERE id = ?",
                sha256, fingerprint, size, seconds, id,
            )  # fmt: skip
            self._finish(id, outcome)
            copies = self._copies(fingerprint)
            for copy in copies[1:]:
                self._reject(copy.id, Rejected("duplicate", f"the same sound as {copies[0].url}"))
        return copies[1:]

    def _finish(self, id: str, outcome: dict[str, Any]) -> None:
        text = json.dumps(outcome, ensure_ascii=False)
        ended = "state = 'done', owner = NULL, attempts = 0, reason = NULL, detail = NULL, settled = 0"
        self._db.run(f"UPDATE item SET {ended}, outcome = ? WHERE id = ?", text, id)
        for url in outcome.get("hops", ()):
            self._db.run("INSERT OR IGNORE INTO hop VALUES (?, ?)", id, url)

    def _copies(self, fingerprint: str) -> list[Item]:
        """The recordings that sound alike, the one to keep first."""
        query = "SELECT * FROM item WHERE fingerprint = ? AND (state = 'done' OR reason = 'duplicate')"
        return sorted(map(_item, self._db.all(query, fingerprint)), key=lambda item: item.url)

    def _reject(self, id: str, refusal: Rejected) -> None:
        self._db.run(
            "UPDATE item SET state = 'rejected', owner = NULL, reason = ?, detail = ? WHERE id = ?",
            refusal.reason, refusal.detail, id,
        )  # fmt: skip

    def _check_lease(self, id: str) -> Item:
        row = self._db.one("SELECT * FROM item WHERE id = ? AND state = 'open' AND owner = ?", id, self.owner)
        if row is None:
            raise Lost(id)
        return _item(row)

    def _check_hops(self, item: Item, outcome: dict[str, Any]) -> None:
        """A takedown may have come while the item was being fetched."""
        if any(self._tombstones.cover_url(url) for url in (item.url, *outcome.get("hops", ()))):
            raise Rejected("taken-down", "its source was taken down")

    # Second thoughts

    def withdraw(self, id: str, refusal: Rejected) -> None:
        """Reject what was kept; its duplicates get their chance again."""
        with self._db.writing():
            self._reopen("reason = 'duplicate' AND fingerprint = (SELECT fingerprint FROM item WHERE id = ?)", id)
            self._reject(id, refusal)

    def reconsider(self, id: str) -> None:
        """Open again what was rejected."""
        with self._db.writing():
            self._reopen("id = ? AND state = 'rejected'", id)

    def take_down(self, url: str) -> list[Item]:
        """Reject and bury `url` with everything derived from it, content included; returns those items as they were."""
        with self._db.writing():
            self._tombstones.add(URL, url)
            derived = {row["id"]: _item(row) for row in self._db.all(_DERIVED, url=url)}
            for item in list(derived.values()):
                self._tombstones.add(URL, item.url)
                if item.sha256 and item.fingerprint:
                    self._tombstones.add(CONTENT, item.sha256)
                    self._tombstones.add(SOUND, item.fingerprint)
                    copies = self._db.all("SELECT * FROM item WHERE fingerprint = ?", item.fingerprint)
                    derived.update((row["id"], _item(row)) for row in copies)
            for id in derived:
                self._reject(id, Rejected("taken-down", f"with {url}"))
                self._db.run("UPDATE item SET outcome = '{}', validator = '{}', settled = 1 WHERE id = ?", id)
                self._db.run("UPDATE link SET facts = '{}' WHERE child = ?", id)
        return list(derived.values())

    # Reading

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._db.clock()

    def get(self, id: str) -> Item:
        """The item `id`, which exists."""
        return _item(self._db.one("SELECT * FROM item WHERE id = ?", id))

    def knows(self, id: str) -> bool:
        """Whether there is such an item, open or done."""
        return self._db.one("SELECT 1 FROM item WHERE id = ? AND state <> 'rejected'", id) is not None

    def items(self, condition: str = "1", *values: Any) -> Iterator[Item]:
        """Items in the order of their ids, a thousand at a time, so that a frontier of any size can be walked."""
        last = ""
        query = f"SELECT * FROM item WHERE id > ? AND ({condition}) ORDER BY id LIMIT 1000"
        while rows := self._db.all(query, last, *values):
            yield from map(_item, rows)
            last = rows[-1]["id"]

    def facts(self, id: str) -> list[dict[str, Any]]:
        """What each parent says of an item, in the order of the parents' ids."""
        rows = self._db.all("SELECT facts FROM link WHERE child = ? ORDER BY parent", id)
        return [json.loads(row["facts"]) for row in rows]

    def unsettled(self) -> list[Item]:
        """Finished items whose files may not be in their places yet."""
        return [_item(row) for row in self._db.all("SELECT * FROM item WHERE settled = 0 AND state <> 'rejected'")]

    def settle(self, id: str) -> None:
        """The item's files are in their places."""
        with self._db.writing():
            self._db.run("UPDATE item SET settled = 1 WHERE id = ?", id)

    def keeps(self, sha256: str) -> bool:
        """Whether a kept recording has this content."""
        return self._db.one("SELECT 1 FROM item WHERE sha256 = ? AND state = 'done'", sha256) is not None

    def next_due(self) -> float | None:
        """Seconds until some open item may be due, whoever holds it; None if nothing is open."""
        due = "SELECT min(due) FROM item WHERE item.host = host.name AND state = 'open'"
        row = self._db.one(f"SELECT min(max(next_at, ({due}))) FROM host")
        return None if row[0] is None else max(0.0, row[0] - self._db.clock())

    def totals(self) -> Totals:
        """Counts, from an index alone."""
        query = "SELECT state, reason, kind, count(*), total(seconds), total(bytes) FROM item GROUP BY 1, 2, 3"
        waiting = documents = recordings = 0
        seconds = size = 0.0
        rejected: dict[str, int] = {}
        for state, reason, kind, count, duration, length in self._db.all(query):
            if state == "open":
                waiting += count
            elif state == "rejected":
                rejected[reason] = rejected.get(reason, 0) + count
            elif kind in DOCUMENTS:
                documents += count
            else:
                recordings, seconds, size = recordings + count, seconds + duration, size + length
        return Totals(waiting, documents, recordings, seconds / 3600, int(size), rejected)


_COLUMNS = tuple(column.name for column in fields(Item))


def _item(row: Any) -> Item:
    values = {name: row[name] for name in _COLUMNS}
    values["validator"], values["outcome"] = json.loads(row["validator"]), json.loads(row["outcome"])
    return Item(**values)
