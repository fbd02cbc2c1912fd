"""Results by key, in one SQLite file: what a stage made of a clip, as the difference to it, and how long that took.

A result is written once and never changes. A killed run loses the results of the last moment, never a whole one.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS results(key BLOB PRIMARY KEY, stage TEXT, outcome BLOB, ms REAL, seconds REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, sha256 TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Result:
    """What a stage made of a clip: `outputs` as differences to it, or a `refusal`.

    ms       that it took
    seconds  of sound that went in
    """

    key: bytes
    stage: str
    outputs: tuple[dict[str, Any], ...] = ()
    refusal: Decision | None = None
    ms: float = 0.0
    seconds: float = 0.0

    def clips(self, clip: Clip) -> list[Clip]:
        """What became of `clip`, without the decisions."""
        plain = clip.to_dict()
        return [Clip.from_dict(_apply(plain, change)) for change in self.outputs]


def difference(before: Clip, after: Clip) -> dict[str, Any]:
    """The fields of `after` that differ, as a plain mapping; None for those that are gone."""
    old, new = before.to_dict(), after.to_dict()
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    return {**changed, **{key: None for key in old if key not in new}}


def _apply(plain: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**plain, **change}.items() if value is not None}


class Results:
    """The file of results. One process writes."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a file of results ({error})") from None

    def get(self, key: bytes) -> Result | None:
        row = self._db.execute("SELECT stage, outcome, ms, seconds FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        said = json.loads(zlib.decompress(row[1]))
        refusal = Decision(**said["refusal"]) if said["refusal"] else None
        return Result(key, row[0], tuple(said["outputs"]), refusal, row[2], row[3])

    def add(self, results: list[Result]) -> None:
        """File results, all or none."""
        rows = [(r.key, r.stage, _packed(r), r.ms, r.seconds) for r in results]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?)", rows)
        self._db.execute("COMMIT")

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


def _packed(result: Result) -> bytes:
    refusal = result.refusal and result.refusal.__dict__
    said = {"outputs": result.outputs, "refusal": refusal}
    return zlib.compress(json.dumps(said, ensure_ascii=False, allow_nan=False).encode(), 1)
