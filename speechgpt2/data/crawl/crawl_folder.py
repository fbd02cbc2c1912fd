"""The files of a crawl, moved to their final places so that a kill neither loses one nor leaves a stray one.

    frontier.db               states of items
    work/ID/                  downloads in progress: body, fetched.json, warc.gz
    audio/ab/ab12….mp3        recordings, named by their content
    warc/ab/ab12….warc.gz     provenance, named by the item
    manifest.jsonl            records of kept recordings, in the order of their ids
    rejected.jsonl            records of rejected items, with reasons

The frontier changes first, files follow: an item is marked as done, then its files are moved, then that is recorded.
The next start moves the files that a kill left in work/ (`settle`), and removes stray files (`sweep`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from speechgpt2.data.crawl.frontier import Frontier
from speechgpt2.data.crawl.frontier_reader import DOCUMENTS, CrawlItem

FRONTIER = "frontier.db"


class CrawlFolder:
    """The folder of a crawl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._work, self._audio, self._warc = folder / "work", folder / "audio", folder / "warc"

    def create(self) -> None:
        """Create the folders."""
        for folder in (self._work, self._audio, self._warc):
            folder.mkdir(parents=True, exist_ok=True)

    def work(self, item: CrawlItem) -> Path:
        """Return the item's folder for downloads in progress."""
        folder = self._work / item.id
        folder.mkdir(exist_ok=True)
        return folder

    def audio(self, item: CrawlItem) -> Path:
        """Return the path of a finished recording."""
        assert item.sha256
        return self._audio / item.sha256[:2] / f"{item.sha256}.{item.outcome['ending']}"

    def warc(self, id: str) -> Path:
        """Return the path of an item's provenance."""
        return self._warc / id[:2] / f"{id}.warc.gz"

    def settle(self, item: CrawlItem, frontier: Frontier) -> None:
        """Move a finished item's files to their final places. Repeated and concurrent calls do no harm."""
        work = self._work / item.id
        _move(work / "warc.gz", self.warc(item.id))
        if item.kind not in DOCUMENTS:
            _move(work / "body", self.audio(item))
        shutil.rmtree(work, ignore_errors=True)
        frontier.settle(item.id)

    def discard_work(self, id: str) -> None:
        """Remove what was fetched for an item."""
        shutil.rmtree(self._work / id, ignore_errors=True)

    def discard(self, item: CrawlItem, frontier: Frontier) -> None:
        """Remove the files of an item that is no longer kept. Content of another kept item stays."""
        self.discard_work(item.id)
        self.warc(item.id).unlink(missing_ok=True)
        if item.sha256 and not frontier.keeps(item.sha256):
            for path in self._audio.glob(f"{item.sha256[:2]}/{item.sha256}.*"):
                path.unlink(missing_ok=True)

    def sweep(self, frontier: Frontier) -> None:
        """Settle finished items, and remove files that belong to no open or kept item."""
        for item in frontier.unsettled():
            self.settle(item, frontier)
        for path in self._work.iterdir() if self._work.is_dir() else ():
            if not frontier.knows(path.name):
                shutil.rmtree(path, ignore_errors=True)
        for path in _files(self._audio):
            if not frontier.keeps(path.stem):
                path.unlink(missing_ok=True)
        for path in _files(self._warc):
            if not frontier.knows(path.name.partition(".")[0]):
                path.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another worker settles the same item
        os.replace(source, target)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*/*")) if path.is_file()) if folder.is_dir() else iter(())
