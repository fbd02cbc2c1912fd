"""The results database of a run, one SQLite file: a stage's changes to a clip, by key, and how long they took.

A result is written once and never changes. A killed run loses its last results, but leaves no partial ones. A result is
stored with its source, and a takedown of the source deletes it.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from speechgpt2.data.pipeline import serialization
from speechgpt2.data.record import Clip, Decision, Source
from speechgpt2.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS results(
    key BLOB PRIMARY KEY, stage TEXT, outcome BLOB, ms REAL, seconds REAL, source INTEGER
);
CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources(number INTEGER PRIMARY KEY, url TEXT, sha256 TEXT, UNIQUE (url, sha256));
CREATE TABLE IF NOT EXISTS recordings(pcm_hash TEXT, source INTEGER, PRIMARY KEY (pcm_hash, source)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS buried(
    id TEXT PRIMARY KEY, url TEXT, sha256 TEXT, detail TEXT, wiped INTEGER DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS buried_url ON buried(url);
CREATE INDEX IF NOT EXISTS buried_sha256 ON buried(sha256);
"""

CACHE = 64 << 10  # KiB of cached pages: keys are spread over the whole index

# After a takedown (table `buried`). A result without a known source might come from the removed one.
_DELETE_DERIVED = """
DELETE FROM sources WHERE url IN (SELECT url FROM buried WHERE url <> '') OR sha256 IN (SELECT sha256 FROM buried);
DELETE FROM results WHERE source IS NULL OR source NOT IN (SELECT number FROM sources);
DELETE FROM recordings WHERE source NOT IN (SELECT number FROM sources);
DELETE FROM files WHERE sha256 IN (SELECT sha256 FROM buried)
"""


@dataclass(frozen=True)
class Result:
    """The result of a stage for a clip.

    Attributes:
        key: hash of the stage and the clip.
        stage: the name of the stage.
        outputs: the resulting clips, each as changes of the input clip.
        rejection: the decision that rejects the clip, instead of outputs.
        ms: duration of the computation.
        seconds: length of the input's audio.
    """

    key: bytes
    stage: str
    outputs: tuple[serialization.Change, ...] = ()
    rejection: Decision | None = None
    ms: float = 0.0
    seconds: float = 0.0

    def clips(self, clip: Clip) -> list[Clip]:
        """Apply the changes to `clip`, without decisions."""
        return [replace(clip, **change) for change in self.outputs]


class Results:
    """The results database. Only one process may write."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute(f"PRAGMA cache_size=-{CACHE}")
            self._db.executescript(SCHEMA)
            if "source" not in [row[1] for row in self._db.execute("PRAGMA table_info(results)")]:
                self._db.execute("ALTER TABLE results ADD COLUMN source INTEGER")  # older files lack the column
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a results database ({error})") from None
        self._any_takedown = self._db.execute("SELECT 1 FROM buried LIMIT 1").fetchone() is not None

    def get(self, key: bytes) -> Result | None:
        """Return the result of a key, or None."""
        row = self._db.execute("SELECT stage, outcome, ms, seconds FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Result(key, row[0], *serialization.unpack(zlib.decompress(row[1])), row[2], row[3])

    def add(self, results: Iterable[tuple[Result, Source]]) -> None:
        """Add results, each with the source of its clip, in one transaction."""
        self._db.execute("BEGIN")
        for result, source in results:
            number = self._source_number(source.url, source.sha256 or "")
            packed = zlib.compress(serialization.pack(result.outputs, result.rejection), 1)
            row = (result.key, result.stage, packed, result.ms, result.seconds, number)
            self._db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)", row)
            for recording in {change["audio"].pcm_hash for change in result.outputs if "audio" in change}:
                self._db.execute("INSERT OR IGNORE INTO recordings VALUES (?, ?)", (recording, number))
        self._db.execute("COMMIT")

    def _source_number(self, url: str, sha256: str) -> int:
        inserted = self._db.execute("INSERT OR IGNORE INTO sources(url, sha256) VALUES (?, ?)", (url, sha256))
        if inserted.rowcount:
            return inserted.lastrowid  # type: ignore[return-value]
        query = "SELECT number FROM sources WHERE url = ? AND sha256 = ?"
        return self._db.execute(query, (url, sha256)).fetchone()[0]

    def take_down(self, clips: Iterable[Clip], recordings: Path) -> None:
        """Delete everything that was made from the sources of these clips, and record them as taken down.

        Clips that were taken down before are skipped. After a kill it can be repeated.

        Args:
            clips: the clips.
            recordings: the folder of standard recordings. Those that no other source needs are deleted.
        """
        new_clips = [
            clip for clip in clips if not self._db.execute("SELECT 1 FROM buried WHERE id = ?", (clip.id,)).fetchone()
        ]
        if new_clips:
            self._db.execute("BEGIN")
            for clip in new_clips:
                detail = clip.rejection.detail if clip.rejection else ""
                values = (clip.id, clip.source.url, clip.source.sha256, detail)
                self._db.execute("INSERT INTO buried(id, url, sha256, detail) VALUES (?, ?, ?, ?)", values)
            for statement in _DELETE_DERIVED.split(";"):
                self._db.execute(statement)
            for path in recordings.glob("*/*"):
                if not self._db.execute("SELECT 1 FROM recordings WHERE pcm_hash = ?", (path.stem,)).fetchone():
                    path.unlink()
            self._db.execute("COMMIT")
            self._any_takedown = True
        if self._db.execute("SELECT 1 FROM buried WHERE NOT wiped LIMIT 1").fetchone():
            self._db.execute("VACUUM")  # deleted data remains in free pages and in the log until then
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("UPDATE buried SET wiped = 1")

    def takedown_reason(self, clip: Clip) -> str | None:
        """Return the detail of the takedown that covers the clip's source; None if there is none."""
        if not self._any_takedown:
            return None
        query = "SELECT detail FROM buried WHERE id = ? OR (url = ? AND url <> '') OR sha256 = ?"
        row = self._db.execute(query, (clip.id, clip.source.url, clip.source.sha256)).fetchone()
        return None if row is None else row[0]

    def takedowns(self) -> Iterator[tuple[str, str, str]]:
        """Yield id, URL and detail of everything that was taken down."""
        yield from self._db.execute("SELECT id, url, detail FROM buried ORDER BY id")

    def file_hash(self, path: str, size: int, changed: int) -> str | None:
        """Return the stored SHA-256 of a file; None if its size or time has changed.

        Args:
            path: the file.
            size: its bytes.
            changed: its time of modification in nanoseconds.
        """
        row = self._db.execute("SELECT size, changed, sha256 FROM files WHERE path = ?", (path,)).fetchone()
        return row[2] if row is not None and row[:2] == (size, changed) else None

    def store_file_hash(self, path: str, size: int, changed: int, sha256: str) -> None:
        """Store the SHA-256 of a file for `file_hash`."""
        self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (path, size, changed, sha256))

    def clear_ids(self) -> None:
        """Start an empty list of ids."""
        self._db.execute("DROP TABLE IF EXISTS temp.ids")
        self._db.execute("CREATE TEMP TABLE ids(id TEXT PRIMARY KEY) WITHOUT ROWID")

    def add_id(self, id: str) -> bool:
        """Add an id to the list; returns whether it is new there."""
        return self._db.execute("INSERT OR IGNORE INTO temp.ids VALUES (?)", (id,)).rowcount == 1

    def times(self) -> Iterator[tuple[str, int, float, float]]:
        """Yield for each stage: name, results, seconds of work, seconds of audio."""
        yield from self._db.execute(
            "SELECT stage, COUNT(*), SUM(ms) / 1000, SUM(seconds) FROM results GROUP BY stage ORDER BY stage"
        )

    def close(self) -> None:
        """Close the database."""
        self._db.close()
