"""Processes an item by its kind: reads the links of a document, fetches and probes a recording."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt2.data.crawl import discover, licence, manifest, provenance, transcript, urls
from speechgpt2.data.crawl.access_policy import AccessPolicy
from speechgpt2.data.crawl.crawl_folder import CrawlFolder
from speechgpt2.data.crawl.discover import DocumentSource
from speechgpt2.data.crawl.document_process import DocumentProcess
from speechgpt2.data.crawl.fetch import Document, Download, Fetcher, HttpExchange
from speechgpt2.data.crawl.frontier import Frontier
from speechgpt2.data.crawl.frontier_reader import CrawlItem, Link
from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater
from speechgpt2.data.crawl.licence import ITEM, Statement
from speechgpt2.data.crawl.probe_process import ProbeProcess
from speechgpt2.data.crawl.seeds import CrawlConfig
from speechgpt2.data.crawl.videos import Extractor, Video, YtDlp
from speechgpt2.hub import sha256_of, write_atomically
from speechgpt2.tts.utterance import Word

PLANNED = "planned"  # in a dry run, the reason of recordings that would be fetched


@dataclass
class Tools:
    """The parts that handlers use; the extractor is created for the first video."""

    config: CrawlConfig
    store: CrawlFolder
    frontier: Frontier
    fetcher: Fetcher
    access: AccessPolicy
    prober: ProbeProcess
    reader: DocumentProcess
    extractor: Extractor | None = None

    def videos(self) -> Extractor:
        """Return the extractor of video sites. Raises `UserError` if yt-dlp is not installed."""
        if self.extractor is None:
            limit = int(self.config.fetch.max_recording_mb * 1e6)
            self.extractor = YtDlp(self.fetcher.user_agent, self.config.polite.delay, limit)
        return self.extractor


class Handlers:
    """Each method finishes the leased item, or raises `ItemRejected`, `RetryLater` or `LeaseLost`."""

    def __init__(self, tools: Tools, plan_only: bool = False):
        self._tools, self._plan_only = tools, plan_only

    # Documents

    async def document(self, item: CrawlItem) -> None:
        """Read a feed, sitemap, page, folder or list of videos, and add its links to the frontier."""
        if item.kind == "folder":
            links = await asyncio.to_thread(_recordings_below, item, self._facts(item))
            self._finish_document(item, Document(item.url, b"", "", {}, []), links)
        elif item.kind == "videos":
            await self._tools.access(item.url)
            videos = await asyncio.to_thread(self._tools.videos().list, item.url)
            links = [link for video in videos for link in self._video_link(video, item)]
            self._finish_document(item, Document(item.url, b"", "", {}, []), links)
        else:
            document = await self._get(item)
            if document.body is None:
                self._tools.frontier.finish_unchanged(item.id)
            else:
                source = self._source(item, document.url)
                links = await self._tools.reader.links(item.kind, document.body, document.content_type, source)
                self._finish_document(item, document, links)

    async def _get(self, item: CrawlItem) -> Document:
        """Return the document: from its archive if it only has to be followed deeper, else from the network."""
        read_at_depth = item.outcome.get("depth")
        if read_at_depth is not None and read_at_depth < item.depth:
            archived = provenance.read_body(self._tools.store.warc(item.id))
            if archived is not None:
                return Document(item.outcome["hops"][-1], *archived, item.validator, [])
        return await self._tools.fetcher.document(
            item.url, self._tools.access, item.validator if item.outcome else None
        )

    def _finish_document(self, item: CrawlItem, document: Document, links: list[Link]) -> None:
        work, hops = self._tools.store.work(item), [exchange.url for exchange in document.exchanges]
        metadata = self._metadata(item, hops or [document.url])
        if document.exchanges:
            digest = hashlib.sha256(document.body or b"").hexdigest()
            provenance.write(work / "warc.gz", document.exchanges, document.body, digest, metadata)
        self._tools.frontier.finish_document(item.id, links, document.validator, {**metadata, "depth": item.depth})
        self._tools.store.settle(item, self._tools.frontier)

    def _source(self, item: CrawlItem, url: str) -> DocumentSource:
        return DocumentSource(url, item.depth, self._stated(item), self._facts(item).get("language", ""))

    def _facts(self, item: CrawlItem) -> dict[str, Any]:
        """Return the facts of the item's first parent, which its links inherit."""
        facts = self._tools.frontier.facts(item.id)
        return facts[0] if facts else {}

    def _video_link(self, video: Video, item: CrawlItem) -> list[Link]:
        try:
            facts = {**self._facts(item), **({"title": video.title} if video.title else {})}
            return [Link(urls.normalise(video.url), "video", 0, facts)]
        except ItemRejected:
            return []

    # Recordings

    async def recording(self, item: CrawlItem) -> None:
        """Fetch a recording, decode it completely, and keep it if its licence allows it and it is new audio."""
        stated = self._stated(item)
        if item.kind != "video" and not licence.permits(stated, self._tools.config.licences):
            raise licence.rejection(stated)
        if self._plan_only:
            if item.kind != "file":
                await self._tools.access.delay(item.url)
            raise ItemRejected(PLANNED, stated.spdx or stated.raw or "no licence stated")
        work = self._tools.store.work(item)
        download, video = await self._fetch(item, work)
        body = work / "body"
        sha256 = await asyncio.to_thread(sha256_of, body)
        probed = await self._tools.prober.probe(body, self._tools.config.max_hours)
        transcript_document, lines = await self._transcript(item)
        hops = [exchange.url for exchange in download.exchanges] or [item.url]
        metadata = self._metadata(item, hops, video.licence if video else "")
        outcome = {
            **metadata, "etag": download.validator.get("etag", ""), "content_type": download.content_type,
            "ending": probed.ending, "format": probed.format, "sample_rate": probed.sample_rate,
            "channels": probed.channels, "video": video._asdict() if video else None,
            "transcript": {"url": transcript_document.url, "lines": lines} if transcript_document else None,
        }  # fmt: skip
        provenance.write(
            work / "warc.gz", download.exchanges, None, sha256, {**outcome, "sha256": sha256}, transcript_document
        )
        duplicates = self._tools.frontier.finish_recording(
            item.id, sha256, probed.fingerprint, body.stat().st_size, probed.seconds, outcome
        )
        if item.id not in [duplicate.id for duplicate in duplicates]:
            self._tools.store.settle(self._tools.frontier.get(item.id), self._tools.frontier)
        for duplicate in duplicates:
            self._tools.store.discard(duplicate, self._tools.frontier)

    async def _transcript(self, item: CrawlItem) -> tuple[Document | None, tuple[Word, ...]]:
        """Fetch the transcript that a feed names. A missing or unreadable transcript does not reject the recording.

        Returns:
            The transcript's document and its lines; (None, ()) without one.
        """
        address = manifest.transcript_of(self._tools.frontier, item)
        if not address:
            return None, ()
        url, type = address
        try:
            document = await self._tools.fetcher.document(url, self._tools.access)
            text = discover.decode(document.body or b"", document.content_type)
            return document, transcript.lines_of(text, type)
        except ItemRejected:
            return None, ()
        except RetryLater:
            if item.attempts + 1 < self._tools.config.attempts:
                raise
            return None, ()

    async def _fetch(self, item: CrawlItem, work: Path) -> tuple[Download, Video | None]:
        """Fetch the recording into `work`/body, unless a killed run completed it."""
        body, note = work / "body", work / "fetched.json"
        if note.exists():
            return _fetched_before(json.loads(note.read_text(encoding="utf-8")))
        video = None
        if item.kind == "media":
            remember = lambda validator: self._tools.frontier.remember(item.id, validator)  # noqa: E731
            download = await self._tools.fetcher.download(item.url, body, self._tools.access, item.validator, remember)
        elif item.kind == "file":
            limit = self._tools.config.fetch.max_recording_mb * 1e6
            await asyncio.to_thread(_copy, urls.to_file(item.url), body, limit)
            download = Download(item.url, "", {}, [])
        else:
            await self._tools.access(item.url)
            video = await asyncio.to_thread(self._tools.videos().download, item.url, body, self._accept(item))
            download = Download(item.url, "", {}, [])
        text = json.dumps([download, video], ensure_ascii=False)
        write_atomically(note, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        return download, video

    def _accept(self, item: CrawlItem) -> Any:
        """Return a function that returns why a video's licence forbids to fetch it, or None."""
        frontier, allowed = self._tools.frontier, self._tools.config.licences
        from_parents = manifest.statements(frontier, item)  # read in this thread: the extractor runs in another one

        def decide(video: Video) -> str | None:
            own = [Statement(video.licence, ITEM)] if video.licence else []
            stated = licence.strongest([*from_parents, *own], allowed)
            return None if licence.permits(stated, allowed) else licence.rejection(stated).detail

        return decide

    def _stated(self, item: CrawlItem, video: str = "") -> Statement:
        return licence.strongest(manifest.statements(self._tools.frontier, item, video), self._tools.config.licences)

    def _metadata(self, item: CrawlItem, hops: list[str], video: str = "") -> dict[str, Any]:
        stated = self._stated(item, video)
        fetched_at = provenance.timestamp(self._tools.frontier.now())
        return {
            "url": item.url, "kind": item.kind, "hops": hops, "fetched_at": fetched_at,
            "licence_raw": stated.raw, "spdx": stated.spdx,
        }  # fmt: skip


def _recordings_below(item: CrawlItem, facts: dict[str, Any]) -> list[Link]:
    """Return the audio files in a folder and below, by their endings. Symbolic links are not followed."""
    links = []
    for folder, folders, names in os.walk(urls.to_file(item.url)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(folder) / name for name in names if name.lower().endswith(urls.AUDIO_ENDINGS)]
        links += [Link(urls.of_file(path), "file", 0, facts) for path in paths if not path.is_symlink()]
    return links


def _copy(source: Path, target: Path, limit: float) -> None:
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ItemRejected("type", "is not a regular file")
        if status.st_size > limit:
            raise ItemRejected("too-large", f"{status.st_size} bytes, the limit is {limit:.0f}")
        reader = source.open("rb")
    except OSError as error:
        raise ItemRejected("unreadable", error.strerror or str(error)) from None
    with reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _fetched_before(saved: list[Any]) -> tuple[Download, Video | None]:
    """Read the note that `_fetch` writes."""
    url, content_type, validator, exchanges = saved[0]
    pairs = [
        HttpExchange(e[0], tuple(map(tuple, e[1])), e[2], e[3], tuple(map(tuple, e[4])))  # type: ignore[arg-type]
        for e in exchanges
    ]
    return Download(url, content_type, validator, pairs), Video(*saved[1]) if saved[1] else None
