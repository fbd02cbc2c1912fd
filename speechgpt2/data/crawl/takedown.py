"""Takedown: remove everything derived from a source, and never fetch the source or its content again."""

from __future__ import annotations

from pathlib import Path

from speechgpt2.data.crawl import manifest, urls
from speechgpt2.data.crawl.crawl_folder import FRONTIER, CrawlFolder
from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.frontier import Frontier
from speechgpt2.data.crawl.frontier_reader import CrawlItem
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.errors import UserError


def take_down(source: str, folder: Path) -> list[CrawlItem]:
    """Take a source down.

    Args:
        source: a URL, or the path of a crawled folder.
        folder: the crawl's folder.

    Returns:
        The items that were derived from the source.

    Raises:
        UserError: the folder has no crawl, or the source is not a URL.
    """
    if not (folder / FRONTIER).is_file():
        raise UserError(f"{folder}: not a crawl (there is no {FRONTIER})")
    url = _url_of(source)
    store, database = CrawlFolder(folder), Database(folder / FRONTIER)
    try:
        frontier = Frontier(database, owner="takedown", lease=1.0)
        removed = frontier.take_down(url)
        for item in removed:
            store.discard(item, frontier)
        manifest.write(store, frontier)
    finally:
        database.close()
    return removed


def _url_of(source: str) -> str:
    if "://" not in source and Path(source).exists():
        return urls.of_file(Path(source))
    if source.startswith("file:"):
        return source
    try:
        return urls.normalise(source)
    except ItemRejected as rejection:
        raise UserError(f"{source}: {rejection.detail}") from None
