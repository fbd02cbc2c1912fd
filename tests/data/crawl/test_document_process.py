"""Documents are read in a process that can be killed."""

import asyncio
import time

import pytest

from tests import needs

needs.module("aiohttp", "crawl")
needs.module("feedparser", "crawl")

from speechgpt2.data.crawl.discover import DocumentSource, links_of
from speechgpt2.data.crawl.document_process import DocumentProcess
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.licence import Statement

PAGE = b'<a href="/talk.mp3">A talk</a> <a href="/more">more</a>'
SOURCE = DocumentSource("http://site.test/", 2, Statement("CC0", 2), "en")


def test_links_are_those_of_the_reader():
    async def scenario():
        process = DocumentProcess()
        links = await process.links("page", PAGE, "text/html", SOURCE)
        await process.close()
        return links

    links = asyncio.run(scenario())
    assert links == links_of("page", PAGE, "text/html", SOURCE) and len(links) == 2


def test_document_that_holds_its_parser_is_given_up():
    """Its regular expressions hold the interpreter, so neither a thread nor a signal would end them."""

    async def scenario():
        process, hostile = DocumentProcess(timeout=2.0), b"<a " * 300_000
        began = time.monotonic()
        with pytest.raises(ItemRejected, match="unreadable: reading it did not end within 2 s"):
            await process.links("page", hostile, "text/html", SOURCE)
        assert time.monotonic() - began < 10
        process._timeout = 60.0
        links = await process.links("page", PAGE, "text/html", SOURCE)
        await process.close()
        return links

    assert len(asyncio.run(scenario())) == 2


def test_refusal_of_the_reader_is_the_processs():
    async def scenario():
        process = DocumentProcess()
        try:
            await process.links("feed", b"<!ENTITY a 'b'>", "application/rss+xml", SOURCE)
        finally:
            await process.close()

    with pytest.raises(ItemRejected):
        asyncio.run(scenario())
