"""The configuration of a crawl: where to look, which licences to accept, how fast to go."""

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
    """Where to look.

    kind      feed (RSS, Atom), sitemap, page, media (a recording), folder (of this machine), videos (by yt-dlp)
    url       a URL; for a folder its path
    licence   what you know of the licence; what a feed, episode or page says itself goes before it
    language  of the speech, where the source does not say
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
            except ItemRejected as refusal:
                raise UserError(f"seed {self.url}: {refusal.detail}") from None
        facts = {"licence": self.licence, "level": SEED if self.licence else 0, "language": self.language}
        return Link(url, self.kind, self.depth, {key: value for key, value in facts.items() if value})


@dataclass(frozen=True)
class CrawlConfig:
    """A crawl.

    contact    a URL or an address to write to, sent with every request
    licences   SPDX identifiers that are accepted; "any" accepts everything, stated or not
    workers    items in the making at once, of which at most `per_host` of one host
    attempts   until an item is given up; pauses begin at `backoff` seconds and double
    lease      seconds after which the items of a worker that died are free again
    max_hours  of one recording, decoded
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
