"""Whether and when a URL may be requested. Every request, and every step of a redirect, is checked first.

access = AccessPolicy(config, hosts, tombstones, fetcher)
await access(url)        # returns when the request may be made
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from protego import Protego

from speechgpt2.data.crawl.fetch import Fetcher
from speechgpt2.data.crawl.hosts import Hosts, RobotsText
from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater
from speechgpt2.data.crawl.tombstones import Tombstones
from speechgpt2.data.crawl.urls import host_of, origin_of

MAX_ROBOTS = 500 * 1024  # bytes of a robots.txt that are read (the minimum of RFC 9309)
RULES_CACHED = 1000  # parsed robots.txt files in memory
POLL = 0.1  # seconds, while another worker fetches a robots.txt


@dataclass(frozen=True)
class PoliteConfig:
    """How fast hosts are requested, and how long their robots.txt is valid.

    Attributes:
        robot: the name that robots.txt files may address.
        delay: seconds between two requests to a host; a Crawl-delay of the host may lengthen it.
        longest_delay: a host that asks for more is not crawled.
        robots_hours: how long a robots.txt is valid.
        robots_pause: seconds until an unreachable robots.txt is requested again.
    """

    robot: str = "speechgpt2"
    delay: float = 1.0
    longest_delay: float = 120.0
    robots_hours: float = 24.0
    robots_pause: float = 30.0


class AccessPolicy:
    """Waits until a URL may be requested.

    Raises:
        ItemRejected: "taken-down" or "robots".
        RetryLater: robots.txt cannot be fetched.
    """

    def __init__(self, config: PoliteConfig, hosts: Hosts, tombstones: Tombstones, fetcher: Fetcher):
        self.config, self._hosts, self._tombstones, self._fetcher = config, hosts, tombstones, fetcher
        self._rules: dict[RobotsText, Protego] = {}

    async def __call__(self, url: str) -> None:
        """Wait until the URL may be requested."""
        await self._wait_for_turn(url, await self.delay(url))
        self._check_tombstone(url)  # a takedown may have come during the wait

    async def delay(self, url: str) -> float:
        """Return the seconds between requests to the host of `url`. Raises the errors of a call."""
        self._check_tombstone(url)
        rules = await self._rules_of(url)
        if not rules.can_fetch(url, self.config.robot):
            raise ItemRejected("robots", f"robots.txt of {host_of(url)} forbids the URL")
        return self._delay(rules)

    async def _rules_of(self, url: str) -> Protego:
        """Return the robots.txt that applies to `url`."""
        origin = origin_of(url)
        while (text := self._hosts.robots(origin)) is None:
            if self._hosts.claim_robots(origin):
                text = await self._fetch_robots(origin)
                break
            await asyncio.sleep(POLL)
        if text.status == 0 or text.status >= 500:
            raise RetryLater(
                f"robots.txt of {host_of(url)} cannot be fetched ({text.body})", after=self.config.robots_pause
            )
        if text not in self._rules:
            if len(self._rules) >= RULES_CACHED:
                self._rules.clear()
            self._rules[text] = Protego.parse(text.body)
        return self._rules[text]

    def _check_tombstone(self, url: str) -> None:
        if self._tombstones.covers_url(url):
            raise ItemRejected("taken-down", f"{url} was taken down")

    def _delay(self, rules: Protego) -> float:
        rate, requested = rules.request_rate(self.config.robot), rules.crawl_delay(self.config.robot) or 0.0
        if rate is not None and rate.requests:
            requested = max(requested, rate.seconds / rate.requests)
        if requested > self.config.longest_delay:
            raise ItemRejected("robots", f"robots.txt asks for {requested:g} s between requests")
        return max(self.config.delay, requested)

    async def _wait_for_turn(self, url: str, delay: float) -> None:
        wait = self._hosts.reserve(host_of(url), delay)
        if wait > 0:
            await asyncio.sleep(wait)

    async def _fetch_robots(self, origin: str) -> RobotsText:
        """Fetch robots.txt. Without the file everything is allowed; while the server fails nothing is."""
        valid_seconds = self.config.robots_hours * 3600

        async def check_access(url: str) -> None:
            self._check_tombstone(url)
            await self._wait_for_turn(url, self.config.delay)

        try:
            try:
                document = await self._fetcher.document(f"{origin}/robots.txt", check_access)
                body = (document.body or b"")[:MAX_ROBOTS].decode("utf-8", "replace")
                text = RobotsText(200, body)
            except ItemRejected as rejection:
                if not rejection.reason.startswith("http-4"):
                    raise
                text = RobotsText(404, "")
            except RetryLater as error:
                text, valid_seconds = RobotsText(0, error.detail), self.config.robots_pause
        except BaseException:
            self._hosts.give_up_robots(origin)
            raise
        self._hosts.set_robots(origin, text, valid_seconds)
        return text
