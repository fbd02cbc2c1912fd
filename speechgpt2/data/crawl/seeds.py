"""The configuration of a crawl: where to start, which licences to accept, and the limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from speechgpt2 import config
from speechgpt2.data.crawl import licence, urls
from speechgpt2.data.crawl.access_policy import PoliteConfig
from speechgpt2.data.crawl.fetch import FetchConfig
from speechgpt2.data.crawl.frontier_reader import Link
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.licence import SEED
from speechgpt2.errors import UserError


@dataclass(frozen=True)
class Seed:
    """A place where the crawl starts.

    kind      feed (RSS, Atom), sitemap, page, media (a recording), folder (of this machine), videos (by yt-dlp)
    url       a URL; for a folder its path
    licence   the licence as you know it; a statement of a feed, episode or page takes precedence
    language  the language of the speech, for a source that does not state it
    depth     pages of the same host to follow from a page, or sitemaps from a sitemap, one after another
    """

    kind: Literal["feed", "sitemap", "page", "media", "folder", "videos"]
    url: str
    licence: str = ""
    language: str = ""
    depth: int = 1

    def link(self) -> Link:
        """Return the seed as a link of the frontier. Raises `UserError`."""
        if self.kind == "folder":
            if not Path(self.url).is_dir():
                raise UserError(f"seed {self.url}: no such folder")
            url = urls.of_file(Path(self.url))
        else:
            try:
                url = urls.normalise(self.url)
            except ItemRejected as rejection:
                raise UserError(f"seed {self.url}: {rejection.detail}") from None
        facts = {"licence": self.licence, "level": SEED if self.licence else 0, "language": self.language}
        return Link(url, self.kind, self.depth, {key: value for key, value in facts.items() if value})


@dataclass(frozen=True)
class CrawlConfig:
    """A crawl.

    contact    a URL or an address to write to, sent with every request
    licences   SPDX identifiers that are accepted; "any" accepts everything, stated or not
    workers    items that are processed at the same time, at most `per_host` of one host
    attempts   attempts until an item is given up; pauses begin at `backoff` seconds and double
    lease      seconds after which other workers may take the items of a worker that died
    max_hours  longest recording, decoded
    """

    contact: str
    seeds: tuple[Seed, ...]
    licences: tuple[str, ...] = licence.OPEN
    workers: int = 8
    per_host: int = 2
    attempts: int = 4
    backoff: float = 2.0
    lease: float = 60.0
    max_hours: float = 24.0
    polite: PoliteConfig = field(default_factory=PoliteConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        if not self.contact.strip():
            raise UserError("contact is empty; give a URL or an e-mail address for the operators of the sites")
        if min(self.workers, self.per_host, self.attempts) < 1 or min(self.lease, self.max_hours) <= 0:
            raise UserError("workers, per_host, attempts, lease and max_hours must be positive")
        if min(self.backoff, self.polite.delay) < 0:
            raise UserError("backoff and polite.delay cannot be negative")


def load(path: str | Path) -> CrawlConfig:
    """Read seeds.yaml; folders in it are relative to its own folder. Raises `UserError`."""
    values = config.read(path)
    for seed in values.get("seeds") or () if isinstance(values, dict) else ():
        if isinstance(seed, dict) and seed.get("kind") == "folder" and isinstance(seed.get("url"), str):
            seed["url"] = str(Path(path).parent / seed["url"])
    return config.from_dict(CrawlConfig, values, Path(path).name)
