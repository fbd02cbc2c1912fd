"""The SQLite file of a crawl: its tables, and transactions for concurrent processes.

Write-ahead logging lets processes read while one writes. A killed process leaves no partial transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechgpt2.errors import UserError

VERSION = 1
_WAIT = 60.0  # seconds to wait for another process's transaction, which takes milliseconds

_SCHEMA = """
CREATE TABLE item (
    id TEXT PRIMARY KEY, url TEXT NOT NULL, kind TEXT NOT NULL, host TEXT NOT NULL, depth INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open', due REAL NOT NULL, owner TEXT, attempts INTEGER NOT NULL DEFAULT 0,
    validator TEXT NOT NULL DEFAULT '{}', settled INTEGER NOT NULL DEFAULT 1,
    reason TEXT, detail TEXT, sha256 TEXT, fingerprint TEXT, bytes INTEGER, seconds REAL,
    outcome TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX item_due ON item (host, state, due);
CREATE INDEX item_totals ON item (state, reason, kind, seconds, bytes);
CREATE INDEX item_sound ON item (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX item_content ON item (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX item_unsettled ON item (settled) WHERE settled = 0;
CREATE TABLE link (parent TEXT NOT NULL, child TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (parent, child));
CREATE INDEX link_child ON link (child);
CREATE TABLE hop (id TEXT NOT NULL, url TEXT NOT NULL, PRIMARY KEY (id, url));
CREATE TABLE host (name TEXT PRIMARY KEY, next_at REAL NOT NULL DEFAULT 0);
CREATE TABLE robots (origin TEXT PRIMARY KEY, status INTEGER, body TEXT, until REAL NOT NULL);
CREATE TABLE tombstone (kind TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (kind, value));
"""


class Database:
    """An open connection.

    Args:
        path: the file.
        clock: returns seconds since the epoch, which all processes share.

    Raises:
        UserError: the file has another version, or is not an SQLite file.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self.path, self.clock = path, clock
        try:
            self._db = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA secure_delete = ON")  # so that free pages hold no data that was taken down
            with self.writing():
                version = self.fetch_one("PRAGMA user_version")[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        self.run(statement)
                    self.run(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as the frontier of a crawl ({error})") from None
        if version not in (0, VERSION):
            raise UserError(
                f"{path}: the frontier has version {version}; this program reads {VERSION}. Use another folder."
            )

    def run(self, statement: str, *values: Any, **named: Any) -> int:
        """Execute a statement and return the number of changed rows; its values are positional or named."""
        return self._db.execute(statement, named or values).rowcount

    def fetch_one(self, query: str, *values: Any, **named: Any) -> Any:
        """Return the first row, or None."""
        return self._db.execute(query, named or values).fetchone()

    def fetch_all(self, query: str, *values: Any, **named: Any) -> list[Any]:
        """Return all rows."""
        return self._db.execute(query, named or values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A write transaction that excludes others from its first statement on. Any exception rolls it back."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is now."""
        copy = sqlite3.connect(path)
        self._db.backup(copy)
        copy.close()

    def close(self) -> None:
        """Close the database."""
        self._db.close()
