"""What a crawl took down goes out of the runs that were made from it: recordings, results, records, shards, pages.

    rejected.jsonl   beside a crawl's manifest: what was taken down, among other refusals
    runs.txt         beside it, too: the folders of the runs that were made from it, one a line

Every run looks at the first before it reads a clip (`Run.process`), so none can bring back what is gone; a takedown
looks at the second and lets those runs do so at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechgpt2.data.record import Clip

REASON = "taken-down"
REFUSED, RUNS = "rejected.jsonl", "runs.txt"


def refusals(source: Path) -> Path | None:
    """The list of refusals of the crawl that a source, a manifest or a folder of it, belongs to."""
    folders = (source, source.parent) if source.is_dir() else (source.parent,)
    return next((folder / REFUSED for folder in folders if (folder / REFUSED).is_file()), None)


def taken_down(source: Path) -> Iterator[Clip]:
    """The records of what the source's crawl took down: id, URL, and the hash of the file if it was ever fetched."""
    path = refusals(source)
    if path is None:
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            clip = Clip.from_json(line) if f'"{REASON}"' in line else None
            if clip is not None and clip.refusal is not None and clip.refusal.reason == REASON:
                yield clip


def note_run(source: Path, run: Path) -> None:
    """Note beside a crawl's manifest that `run` is made from it."""
    path = refusals(source)
    if path is not None and run.resolve() not in runs_of(path.parent):
        with path.with_name(RUNS).open("a", encoding="utf-8") as file:
            file.write(f"{run.resolve()}\n")


def runs_of(crawl: Path) -> list[Path]:
    """The runs that were made from the crawl in a folder, wherever they lie now."""
    path = crawl / RUNS
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
