"""The loop: lease an item, fetch it under a permit, look at it, note what became of it.

    crawl = Crawl(config, folder)
    totals = await crawl.run()      # ends when nothing is open, or soon after crawl.stop()

Several processes may run on one folder. Whatever a source sends ends in a kept or a rejected item, never in an
exception of the run.
"""

from __future__ import annotations

import asyncio
import secrets
from importlib.metadata import version
from pathlib import Path

from speechgpt2.data.crawl import licence, manifest
from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.decoder import Decoder
from speechgpt2.data.crawl.fetch import Fetcher
from speechgpt2.data.crawl.frontier import DOCUMENTS, Frontier, Item, Lost, Totals
from speechgpt2.data.crawl.handlers import Handlers, Tools
from speechgpt2.data.crawl.hosts import Hosts
from speechgpt2.data.crawl.permit import Permit
from speechgpt2.data.crawl.seeds import CrawlConfig
from speechgpt2.data.crawl.store import FRONTIER, Store
from speechgpt2.data.crawl.tombstones import Tombstones
from speechgpt2.data.crawl.verdicts import Rejected, TryLater
from speechgpt2.data.crawl.videos import Extractor

NAP, SHORT_NAP = 0.5, 0.05  # seconds until an idle worker looks again
RENEWALS = 4  # of a lease, within its time


class Crawl:
    """A crawl into `folder`, new or begun. `plan_only` looks at documents and leaves recordings where they are."""

    def __init__(self, config: CrawlConfig, folder: Path, extractor: Extractor | None = None, plan_only: bool = False):
        self.config, self.store = config, Store(folder)
        self._extractor, self._plan_only = extractor, plan_only
        self.store.create()
        self._database = Database(folder / FRONTIER)
        self.frontier = Frontier(self._database, owner=secrets.token_hex(8), lease=config.lease)
        self._hosts = Hosts(self._database, config.lease)
        self._running: list[asyncio.Task[None]] = []
        self._stopped = False
        self.received = 0  # bytes that came over the network, finished or not

    def close(self) -> None:
        self._database.close()

    def prepare(self, refresh: bool = False) -> None:
        """Finish what a killed run left half done, add the seeds, and apply the licences as they are now.

        With `refresh`, documents are asked again for what is new.
        """
        self.store.sweep(self.frontier)
        if refresh:
            self.frontier.refresh()
        self.frontier.add(seed.link() for seed in self.config.seeds)
        self.judge()

    async def run(self) -> Totals:
        """Fetch until nothing is open; then the folder holds manifest.jsonl and rejected.jsonl.

        Also after `stop`, when items are still open.
        """
        user_agent = f"speechgpt2/{version('speechgpt2')} (speech data crawler; {self.config.contact})"
        async with Fetcher(self.config.fetch, user_agent) as fetcher:
            permit = Permit(self.config.polite, self._hosts, Tombstones(self._database), fetcher)
            tools = Tools(self.config, self.store, self.frontier, fetcher, permit, Decoder(), self._extractor)
            handlers = Handlers(tools, self._plan_only)
            heart = asyncio.create_task(self._keep_leases(fetcher))
            try:
                await self._until_done(handlers)
            finally:
                heart.cancel()
                await tools.decoder.close()
        self.store.sweep(self.frontier)
        manifest.write(self.store, self.frontier)
        return self.frontier.totals()

    def stop(self) -> None:
        """Give back all leases and end `run`; what was fetched of an item waits for the next run."""
        self._stopped = True
        for task in self._running:
            task.cancel()

    def judge(self) -> bool:
        """Apply the licences again, by all that is known of each recording by now; whether any is open again for it.

        A recording may be found in several places, in any order: the verdict is over all of them.
        """
        opened = False
        # A video that was refused told its licence then, and is not asked again.
        judged = "kind IN ('media', 'file', 'video') AND (state = 'done' OR (reason = 'licence' AND kind <> 'video'))"
        for item in self.frontier.items(judged):
            stated = licence.strongest(manifest.statements(self.frontier, item), self.config.licences)
            permitted = licence.permits(stated, self.config.licences)
            if item.state == "done" and not permitted:
                self.frontier.withdraw(item.id, licence.refusal(stated))
                self.store.discard(item, self.frontier)
                opened = True  # perhaps: its duplicates
            elif item.state == "rejected" and permitted:
                self.frontier.reconsider(item.id)
                opened = True
        return opened

    async def _until_done(self, handlers: Handlers) -> None:
        again = True
        while again and not self._stopped:
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
            again = self.judge()

    async def _work(self, handlers: Handlers) -> None:
        while (wait := self.frontier.next_due()) is not None:
            item = self.frontier.take(self.config.per_host) if wait <= 0 else None
            if item is None:
                await asyncio.sleep(min(max(wait, SHORT_NAP), NAP))
            else:
                await self._process(item, handlers)

    async def _process(self, item: Item, handlers: Handlers) -> None:
        try:
            try:
                await (handlers.document(item) if item.kind in DOCUMENTS else handlers.recording(item))
            except Rejected as refusal:
                self._reject(item, refusal)
            except TryLater as fault:
                self._postpone(item, fault)
        except Lost:  # somebody else's now, and its files with it
            return
        except BaseException:
            self.frontier.release(item.id)
            raise

    def _reject(self, item: Item, refusal: Rejected) -> None:
        self.frontier.reject(item.id, refusal)
        self.store.discard_work(item.id)

    def _postpone(self, item: Item, fault: TryLater) -> None:
        """Another attempt after a pause that doubles; one that brought bytes does not count."""
        if fault.progress:
            self.frontier.retry(item.id, self.config.backoff, count=False)
        elif item.attempts + 1 >= self.config.attempts:
            self._reject(item, Rejected("gave-up", f"after {self.config.attempts} attempts: {fault.detail}"))
        else:
            if fault.after:
                self._hosts.rest(item.host, fault.after)
            self.frontier.retry(item.id, max(fault.after or 0.0, self.config.backoff * 2**item.attempts))

    async def _keep_leases(self, fetcher: Fetcher) -> None:
        while True:
            self.received = fetcher.received
            self.frontier.renew()
            await asyncio.sleep(min(self.config.lease / RENEWALS, NAP))
