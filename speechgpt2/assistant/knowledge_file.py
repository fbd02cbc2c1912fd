"""The SQLite file of a knowledge base: its tables, their version, transactions, and errors as one line.

file = KnowledgeFile(Path("knowledge.sqlite"), create=True)
with file.transaction(): file.execute("DELETE FROM vectors")
file.all("SELECT source FROM documents")
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechgpt2.errors import UserError

APPLICATION_ID = 0x53673242  # "Sg2B", in the file's header: which program it belongs to
VERSION = 2  # of the tables and of the segmentation
WAIT = 30.0  # seconds to wait for another process that writes

VECTOR_TABLES = f"""
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE vectors (
    piece INTEGER PRIMARY KEY REFERENCES pieces(id) ON DELETE CASCADE, model TEXT NOT NULL, vector BLOB NOT NULL
);
PRAGMA user_version = {VERSION};
"""  # version 1 is the same without these
TABLES = f"""
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, hash TEXT NOT NULL, title TEXT NOT NULL,
    bytes INTEGER NOT NULL, added TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE pieces (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents(id),
    location TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX pieces_of_document ON pieces(document);
CREATE VIRTUAL TABLE terms USING fts5(title, text, tokenize = 'porter unicode61');
PRAGMA application_id = {APPLICATION_ID};
{VECTOR_TABLES}"""


class KnowledgeFile:
    """An open file, which threads may share.

    Args:
        path: The file.
        create: Whether to create it if it does not exist.

    Raises:
        UserError: The file does not exist, is not a knowledge base, has another version or cannot be opened.
    """

    def __init__(self, path: Path, create: bool):
        self.path, self._lock = path, threading.RLock()
        if not create and not path.is_file():
            raise UserError(f"{path}: no such knowledge base; create it with: sg2 kb add FILES --db {path}")
        with self._as_user_errors():
            self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            with self._as_user_errors():
                self._open_tables(create)
        except UserError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def all(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._lock, self._as_user_errors():
            return self._db.execute(statement, values).fetchall()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Write within a transaction."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Write many rows within a transaction."""
        self._db.executemany(statement, values)

    def data_version(self) -> tuple[int, int]:
        """Another value than before if this or another process has written."""
        return self.all("PRAGMA data_version")[0][0], self._db.total_changes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that the block writes, or nothing."""
        with self._lock, self._as_user_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _as_user_errors(self) -> Iterator[None]:
        """Raise `UserError` instead of errors of SQLite."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a bug
        except sqlite3.Error as error:
            reasons = {"database is locked": "another process is writing to it; try again"}
            reason = reasons.get(str(error), str(error))
            raise UserError(f"{self.path}: cannot be used as a knowledge base ({reason})") from None

    def _execute_all(self, statements: str) -> None:
        for statement in statements.split(";"):
            self._db.execute(statement)

    def _identity(self) -> tuple[int, int]:
        """Which program the file belongs to, and its version."""
        application, version = (
            self._db.execute(f"PRAGMA {key}").fetchone() for key in ("application_id", "user_version")
        )
        return application[0], version[0]

    def _use_write_ahead_log(self) -> None:
        """Let readers not wait for a writer. SQLite itself does not wait here if another process creates the file."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _open_tables(self, create: bool) -> None:
        """Create the tables of an empty file; check the version of any other."""
        self._db.execute("PRAGMA foreign_keys = ON")
        if create and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._use_write_ahead_log()
            with self.transaction():
                if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    self._execute_all(TABLES)
        application, version = self._identity()
        if (application, version) == (APPLICATION_ID, 1):
            with self.transaction():
                if self._identity()[1] == 1:  # and not changed by another process meanwhile
                    self._execute_all(VECTOR_TABLES)
            version = VERSION
        if application != APPLICATION_ID:
            raise UserError(f"{self.path}: an SQLite file, but not a knowledge base; choose another --db")
        if version != VERSION:
            raise UserError(
                f"{self.path}: a knowledge base of version {version}, this program reads version {VERSION}; "
                "add the documents to a new file"
            )
