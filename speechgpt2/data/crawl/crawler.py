"""The crawl loop: lease an item, check access, fetch it, inspect it, record the result.

    crawl = Crawl(config, folder)
    totals = await crawl.run()      # ends when no item is open, or soon after crawl.stop()

Several processes may work on one folder. An item ends as kept or rejected, whatever a source sends; it never ends the
run with an exception.
"""

from __future__ import annotations

import asyncio
import secrets
from importlib.metadata import version
from pathlib import Path

from speechgpt2.data.crawl import licence, manifest
from speechgpt2.data.crawl.access_policy import AccessPolicy
from speechgpt2.data.crawl.crawl_folder import FRONTIER, CrawlFolder
from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.document_process import DocumentProcess
from speechgpt2.data.crawl.fetch import Fetcher
from speechgpt2.data.crawl.frontier import Frontier, LeaseLost
from speechgpt2.data.crawl.frontier_reader import DOCUMENTS, CrawlItem, Totals
from speechgpt2.data.crawl.handlers import Handlers, Tools
from speechgpt2.data.crawl.hosts import Hosts
from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater
from speechgpt2.data.crawl.probe_process import ProbeProcess
from speechgpt2.data.crawl.seeds import CrawlConfig
from speechgpt2.data.crawl.tombstones import Tombstones
from speechgpt2.data.crawl.videos import Extractor

IDLE_SECONDS, SHORT_IDLE_SECONDS = 0.5, 0.05  # seconds until an idle worker checks again
RENEWALS = 4  # of a lease, within its duration


class Crawl:
    """A crawl into `folder`, new or to be resumed.

    Args:
        config: seeds, licences and limits.
        folder: where everything is stored.
        extractor: fetches from video sites; yt-dlp if None.
        plan_only: read documents, but fetch no recordings.
    """

    def __init__(self, config: CrawlConfig, folder: Path, extractor: Extractor | None = None, plan_only: bool = False):
        self.config, self.store = config, CrawlFolder(folder)
        self._extractor, self._plan_only = extractor, plan_only
        self.store.create()
        self._database = Database(folder / FRONTIER)
        self.frontier = Frontier(self._database, owner=secrets.token_hex(8), lease=config.lease)
        self._hosts = Hosts(self._database, config.lease)
        self._running: list[asyncio.Task[None]] = []
        self._stopped = False
        self.received = 0  # bytes from the network, of finished and unfinished items

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def prepare(self, refresh: bool = False) -> None:
        """Finish the items of a killed run, add the seeds, and apply the licences of the configuration.

        Args:
            refresh: request documents again that were read before.
        """
        self.store.sweep(self.frontier)
        if refresh:
            self.frontier.refresh()
        self.frontier.add(seed.link() for seed in self.config.seeds)
        self.apply_licences()

    async def run(self) -> Totals:
        """Fetch until no item is open, or until `stop`. Then the folder has manifest.jsonl and rejected.jsonl."""
        user_agent = f"speechgpt2/{version('speechgpt2')} (speech data crawler; {self.config.contact})"
        async with Fetcher(self.config.fetch, user_agent) as fetcher:
            access = AccessPolicy(self.config.polite, self._hosts, Tombstones(self._database), fetcher)
            prober, reader = ProbeProcess(), DocumentProcess()
            tools = Tools(self.config, self.store, self.frontier, fetcher, access, prober, reader, self._extractor)
            handlers = Handlers(tools, self._plan_only)
            renewal = asyncio.create_task(self._keep_leases(fetcher))
            try:
                await self._until_done(handlers)
            finally:
                renewal.cancel()
                await prober.close()
                await reader.close()
        self.store.sweep(self.frontier)
        manifest.write(self.store, self.frontier)
        return self.frontier.totals()

    def stop(self) -> None:
        """Release all leases and end `run`. The next run resumes partial downloads."""
        self._stopped = True
        for task in self._running:
            task.cancel()

    def apply_licences(self) -> bool:
        """Decide again whether each recording's licence is accepted, by all statements about it.

        A recording may be found in several places, in any order; the decision considers all of them.

        Returns:
            Whether an item may be open again.
        """
        opened = False
        # The licence of a rejected video is not stored: the site states it during the fetch.
        decided = "kind IN ('media', 'file', 'video') AND (state = 'done' OR (reason = 'licence' AND kind <> 'video'))"
        for item in self.frontier.items(decided):
            stated = licence.strongest(manifest.statements(self.frontier, item), self.config.licences)
            permitted = licence.permits(stated, self.config.licences)
            if item.state == "done" and not permitted:
                self.frontier.withdraw(item.id, licence.rejection(stated))
                self.store.discard(item, self.frontier)
                opened = True  # rejected duplicates of it are open again
            elif item.state == "rejected" and permitted:
                self.frontier.reconsider(item.id)
                opened = True
        return opened

    async def _until_done(self, handlers: Handlers) -> None:
        open_items = True
        while open_items and not self._stopped:
            self._running = [asyncio.create_task(self._work(handlers)) for _ in range(self.config.workers)]
            try:
                await asyncio.gather(*self._running)
            except asyncio.CancelledError:
                if not self._stopped:
                    raise
            finally:
                for task in self._running:
                    task.cancel()
                await asyncio.gather(*self._running, return_exceptions=True)
            open_items = self.apply_licences()

    async def _work(self, handlers: Handlers) -> None:
        while (wait := self.frontier.next_due()) is not None:
            item = self.frontier.lease_item(self.config.per_host) if wait <= 0 else None
            if item is None:
                await asyncio.sleep(min(max(wait, SHORT_IDLE_SECONDS), IDLE_SECONDS))
            else:
                await self._process(item, handlers)

    async def _process(self, item: CrawlItem, handlers: Handlers) -> None:
        try:
            try:
                await (handlers.document(item) if item.kind in DOCUMENTS else handlers.recording(item))
            except ItemRejected as rejection:
                self._reject(item, rejection)
            except RetryLater as error:
                self._postpone(item, error)
        except LeaseLost:  # another worker now has the item and its files
            return
        except BaseException:
            self.frontier.release(item.id)
            raise

    def _reject(self, item: CrawlItem, rejection: ItemRejected) -> None:
        self.frontier.reject(item.id, rejection)
        self.store.discard_work(item.id)

    def _postpone(self, item: CrawlItem, error: RetryLater) -> None:
        """Schedule another attempt after a pause that doubles. An attempt that received bytes does not count."""
        if error.progress:
            self.frontier.retry(item.id, self.config.backoff, count=False)
        elif item.attempts + 1 >= self.config.attempts:
            self._reject(item, ItemRejected("gave-up", f"after {self.config.attempts} attempts: {error.detail}"))
        else:
            if error.after:
                self._hosts.pause(item.host, error.after)
            self.frontier.retry(item.id, max(error.after or 0.0, self.config.backoff * 2**item.attempts))

    async def _keep_leases(self, fetcher: Fetcher) -> None:
        while True:
            self.received = fetcher.received
            self.frontier.renew()
            await asyncio.sleep(min(self.config.lease / RENEWALS, IDLE_SECONDS))
