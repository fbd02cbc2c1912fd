"""Applies takedowns of a crawl to the runs made from it: recordings, results, records, shards, reports are removed.

    rejected.jsonl   in the crawl's folder: rejections, takedowns among them
    runs.txt         in the crawl's folder: the folders of the runs made from it, one per line

Every run reads the first file before it reads a clip (`PipelineRun.process`), so it cannot restore removed data. A
takedown reads the second file, and updates those runs at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechgpt2.data.record import Clip

REASON = "taken-down"
REJECTED_FILE, RUNS_FILE = "rejected.jsonl", "runs.txt"


def rejections_file(source: Path) -> Path | None:
    """Return the rejections file of the crawl that a source (a manifest or its folder) belongs to."""
    folders = (source, source.parent) if source.is_dir() else (source.parent,)
    return next((folder / REJECTED_FILE for folder in folders if (folder / REJECTED_FILE).is_file()), None)


def taken_down(source: Path) -> Iterator[Clip]:
    """Yield the records of takedowns in the source's crawl: id, URL, and the hash of the file if it was fetched."""
    path = rejections_file(source)
    if path is None:
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            clip = Clip.from_json(line) if f'"{REASON}"' in line else None
            if clip is not None and clip.rejection is not None and clip.rejection.reason == REASON:
                yield clip


def record_run(source: Path, run: Path) -> None:
    """Record in the crawl's folder that `run` is made from it."""
    path = rejections_file(source)
    if path is not None and run.resolve() not in runs_of(path.parent):
        with path.with_name(RUNS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{run.resolve()}\n")


def runs_of(crawl: Path) -> list[Path]:
    """Return the runs that were made from a crawl, by its folder."""
    path = crawl / RUNS_FILE
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
