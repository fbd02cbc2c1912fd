"""A source is taken back: everything derived from it is removed, and neither it nor its content comes again.

    removed = take_down("https://example.org/feed.xml", folder)

What is derived from a feed are its episodes, from a sitemap its pages and their recordings, from a page its
recordings, from a URL that ends in "/" all that lies below it. Content is buried by its hashes, too, so that another
address of the same sound is no way around.
"""

from __future__ import annotations

from pathlib import Path

from speechgpt2.data.crawl import manifest, urls
from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.frontier import Frontier, Item
from speechgpt2.data.crawl.store import FRONTIER, Store
from speechgpt2.data.crawl.verdicts import Rejected
from speechgpt2.errors import UserError


def take_down(source: str, folder: Path) -> list[Item]:
    """Take a URL, or a path of a folder that was crawled, out of the crawl in `folder`; returns what it had led to.

    May be done while the crawl runs, and before anything of the source was seen. Errors: `UserError`.
    """
    if not (folder / FRONTIER).is_file():
        raise UserError(f"{folder}: holds no crawl (no {FRONTIER})")
    url = _url_of(source)
    store, database = Store(folder), Database(folder / FRONTIER)
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
    except Rejected as refusal:
        raise UserError(f"{source}: {refusal.detail}") from None
