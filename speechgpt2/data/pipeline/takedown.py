"""Takedowns of a crawl reach the runs made from it: recordings, results, records, shards and reports are removed.

    rejected.jsonl   in the crawl's folder: rejections, takedowns among them
    runs.txt         in the crawl's folder: the folders of the runs made from it, one per line

Every run reads the first file before it reads a clip (`Run.process`), so it cannot restore what was removed. A takedown
reads the second file, and updates those runs at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechgpt2.data.record import Clip

REASON = "taken-down"
REJECTED, RUNS = "rejected.jsonl", "runs.txt"


def refusals(source: Path) -> Path | None:
    """Return the rejections file of the crawl that a source (a manifest or its folder) belongs to."""
    folders = (source, source.parent) if source.is_dir() else (source.parent,)
    return next((folder / REJECTED for folder in folders if (folder / REJECTED).is_file()), None)


def taken_down(source: Path) -> Iterator[Clip]:
    """Yield the records of takedowns in the source's crawl: id, URL, and the hash of the file if it was fetched."""
    path = refusals(source)
    if path is None:
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            clip = Clip.from_json(line) if f'"{REASON}"' in line else None
            if clip is not None and clip.refusal is not None and clip.refusal.reason == REASON:
                yield clip


def note_run(source: Path, run: Path) -> None:
    """Record in the crawl's folder that `run` is made from it."""
    path = refusals(source)
    if path is not None and run.resolve() not in runs_of(path.parent):
        with path.with_name(RUNS).open("a", encoding="utf-8") as file:
            file.write(f"{run.resolve()}\n")


def runs_of(crawl: Path) -> list[Path]:
    """Return the runs that were made from a crawl, by its folder."""
    path = crawl / RUNS
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
