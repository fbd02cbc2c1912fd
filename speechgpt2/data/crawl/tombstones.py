"""Tombstones of takedowns: URLs, everything below URLs that end in "/", and content by its hashes."""

from __future__ import annotations

from urllib.parse import urlsplit

from speechgpt2.data.crawl.database import Database

URL, CONTENT, AUDIO = "url", "sha256", "fingerprint"


class Tombstones:
    """Tombstones are never removed: what was taken down is not fetched again, from any address."""

    def __init__(self, database: Database):
        self._db = database

    def add(self, kind: str, value: str) -> None:
        """Add a tombstone, within a transaction of the caller."""
        self._db.run("INSERT OR IGNORE INTO tombstone VALUES (?, ?, ?)", kind, value, self._db.clock())

    def covers_url(self, url: str) -> bool:
        """Whether the URL, or a URL above it, was taken down."""
        names = _and_above(url)
        marks = ", ".join("?" * len(names))
        row = self._db.fetch_one(f"SELECT 1 FROM tombstone WHERE kind = '{URL}' AND value IN ({marks})", *names)
        return row is not None

    def covers_content(self, sha256: str, fingerprint: str) -> bool:
        """Whether this content was taken down, from any source."""
        query = "SELECT 1 FROM tombstone WHERE (kind = ? AND value = ?) OR (kind = ? AND value = ?)"
        return self._db.fetch_one(query, CONTENT, sha256, AUDIO, fingerprint) is not None


def _and_above(url: str) -> list[str]:
    """Return the URL and every folder above it: https://h/a/b?c -> itself, https://h/, https://h/a/."""
    parts = urlsplit(url)
    steps = parts.path.split("/")[:-1]
    top = f"{parts.scheme}://{parts.netloc}"
    return [url, *(top + "/".join(steps[: i + 1]) + "/" for i in range(len(steps)))]
