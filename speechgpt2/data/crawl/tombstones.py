"""What was taken down: URLs, everything below those that end in "/", and the content itself by its hashes."""

from __future__ import annotations

from urllib.parse import urlsplit

from speechgpt2.data.crawl.database import Database

URL, CONTENT, SOUND = "url", "sha256", "fingerprint"


class Tombstones:
    """Entries are never removed: what was taken down is not fetched again, from nowhere."""

    def __init__(self, database: Database):
        self._db = database

    def add(self, kind: str, value: str) -> None:
        """Within a transaction of the caller's."""
        self._db.run("INSERT OR IGNORE INTO tombstone VALUES (?, ?, ?)", kind, value, self._db.clock())

    def cover_url(self, url: str) -> bool:
        """Whether the URL, or one that it lies below, was taken down."""
        names = _and_above(url)
        marks = ", ".join("?" * len(names))
        found = self._db.one(f"SELECT 1 FROM tombstone WHERE kind = '{URL}' AND value IN ({marks})", *names)
        return found is not None

    def cover_content(self, sha256: str, fingerprint: str) -> bool:
        """Whether this content was taken down, wherever it came from."""
        query = "SELECT 1 FROM tombstone WHERE (kind = ? AND value = ?) OR (kind = ? AND value = ?)"
        return self._db.one(query, CONTENT, sha256, SOUND, fingerprint) is not None


def _and_above(url: str) -> list[str]:
    """The URL and every folder that it lies in: https://h/a/b?c -> itself, https://h/, https://h/a/."""
    parts = urlsplit(url)
    steps = parts.path.split("/")[:-1]
    top = f"{parts.scheme}://{parts.netloc}"
    return [url, *(top + "/".join(steps[: i + 1]) + "/" for i in range(len(steps)))]
