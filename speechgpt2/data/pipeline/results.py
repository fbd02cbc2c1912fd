"""Results by key, in one SQLite file: what a stage made of a clip, as the difference to it, and how long that took.

A result is written once and never changes. A killed run loses the results of the last moment, never a whole one.
Each knows the source that it was made from, and goes with it when that is taken down.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from speechgpt2.data.pipeline import wire
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

CACHE = 64 << 10  # KiB of pages: keys are spread over their whole index

# After a burial; a result whose source is not known might be of any.
_FORGET = """
DELETE FROM sources WHERE url IN (SELECT url FROM buried WHERE url <> '') OR sha256 IN (SELECT sha256 FROM buried);
DELETE FROM results WHERE source IS NULL OR source NOT IN (SELECT number FROM sources);
DELETE FROM recordings WHERE source NOT IN (SELECT number FROM sources);
DELETE FROM files WHERE sha256 IN (SELECT sha256 FROM buried)
"""


@dataclass(frozen=True)
class Result:
    """What a stage made of a clip: `outputs` as differences to it, or a `refusal`.

    ms       that it took
    seconds  of sound that went in
    """

    key: bytes
    stage: str
    outputs: tuple[wire.Change, ...] = ()
    refusal: Decision | None = None
    ms: float = 0.0
    seconds: float = 0.0

    def clips(self, clip: Clip) -> list[Clip]:
        """What became of `clip`, without the decisions."""
        return [replace(clip, **change) for change in self.outputs]


class Results:
    """The file of results. One process writes."""

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
                self._db.execute("ALTER TABLE results ADD COLUMN source INTEGER")  # of a file from before takedowns
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a file of results ({error})") from None
        self._any_buried = self._db.execute("SELECT 1 FROM buried LIMIT 1").fetchone() is not None

    def get(self, key: bytes) -> Result | None:
        row = self._db.execute("SELECT stage, outcome, ms, seconds FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Result(key, row[0], *wire.unpack(zlib.decompress(row[1])), row[2], row[3])

    def add(self, results: Iterable[tuple[Result, Source]]) -> None:
        """File results, each with the source of its clip, all or none."""
        self._db.execute("BEGIN")
        for result, source in results:
            number = self._number(source.url, source.sha256 or "")
            packed = zlib.compress(wire.pack(result.outputs, result.refusal), 1)
            row = (result.key, result.stage, packed, result.ms, result.seconds, number)
            self._db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)", row)
            for recording in {change["audio"].pcm_hash for change in result.outputs if "audio" in change}:
                self._db.execute("INSERT OR IGNORE INTO recordings VALUES (?, ?)", (recording, number))
        self._db.execute("COMMIT")

    def _number(self, url: str, sha256: str) -> int:
        made = self._db.execute("INSERT OR IGNORE INTO sources(url, sha256) VALUES (?, ?)", (url, sha256))
        if made.rowcount:
            return made.lastrowid  # type: ignore[return-value]
        query = "SELECT number FROM sources WHERE url = ? AND sha256 = ?"
        return self._db.execute(query, (url, sha256)).fetchone()[0]

    def bury(self, clips: Iterable[Clip], recordings: Path) -> None:
        """Forget for ever what was made from the sources of these clips, and delete from the folder `recordings` what
        nothing else was made from. Does nothing where that was done before; killed half-way, it is done again."""
        news = [
            clip for clip in clips if not self._db.execute("SELECT 1 FROM buried WHERE id = ?", (clip.id,)).fetchone()
        ]
        if news:
            self._db.execute("BEGIN")
            for clip in news:
                detail = clip.refusal.detail if clip.refusal else ""
                values = (clip.id, clip.source.url, clip.source.sha256, detail)
                self._db.execute("INSERT INTO buried(id, url, sha256, detail) VALUES (?, ?, ?, ?)", values)
            for statement in _FORGET.split(";"):
                self._db.execute(statement)
            for path in recordings.glob("*/*"):
                if not self._db.execute("SELECT 1 FROM recordings WHERE pcm_hash = ?", (path.stem,)).fetchone():
                    path.unlink()
            self._db.execute("COMMIT")
            self._any_buried = True
        if self._db.execute("SELECT 1 FROM buried WHERE NOT wiped LIMIT 1").fetchone():
            self._db.execute("VACUUM")  # what was deleted still lies in the file's free pages, and in its log
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("UPDATE buried SET wiped = 1")

    def is_buried(self, clip: Clip) -> str | None:
        """Why nothing may be made from the clip's source: what its takedown says; None if it was not taken down."""
        if not self._any_buried:
            return None
        query = "SELECT detail FROM buried WHERE id = ? OR (url = ? AND url <> '') OR sha256 = ?"
        row = self._db.execute(query, (clip.id, clip.source.url, clip.source.sha256)).fetchone()
        return None if row is None else row[0]

    def graves(self) -> Iterator[tuple[str, str, str]]:
        """Id, URL and detail of all that was taken down."""
        yield from self._db.execute("SELECT id, url, detail FROM buried ORDER BY id")

    def known_file(self, path: str, size: int, changed: int) -> str | None:
        """The SHA-256 of a file that has not changed since it was read."""
        row = self._db.execute("SELECT size, changed, sha256 FROM files WHERE path = ?", (path,)).fetchone()
        return row[2] if row is not None and row[:2] == (size, changed) else None

    def remember_file(self, path: str, size: int, changed: int, sha256: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (path, size, changed, sha256))

    def forget_ids(self) -> None:
        """Begin a new list of ids."""
        self._db.execute("DROP TABLE IF EXISTS temp.ids")
        self._db.execute("CREATE TEMP TABLE ids(id TEXT PRIMARY KEY) WITHOUT ROWID")

    def new_id(self, id: str) -> bool:
        """Whether an id stands on the list for the first time."""
        return self._db.execute("INSERT OR IGNORE INTO temp.ids VALUES (?)", (id,)).rowcount == 1

    def times(self) -> Iterator[tuple[str, int, float, float]]:
        """Of each stage: name, results, seconds of work, seconds of sound."""
        yield from self._db.execute(
            "SELECT stage, COUNT(*), SUM(ms) / 1000, SUM(seconds) FROM results GROUP BY stage ORDER BY stage"
        )

    def close(self) -> None:
        self._db.close()
