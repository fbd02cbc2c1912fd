"""`discover.links_of` in a process of its own, so that a document that holds a parser does not hold the crawl.

process = DocumentProcess()
links = await process.links("feed", body, content_type, source)
await process.close()
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from speechgpt2.data.crawl.discover import DocumentSource, links_of
from speechgpt2.data.crawl.frontier_reader import Link
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.licence import Statement
from speechgpt2.data.crawl.worker_process import WorkerProcess, serve

DOCUMENT_TIMEOUT = 30.0  # seconds for one document; a feed of 10,000 episodes takes some 5


class DocumentProcess(WorkerProcess):
    """Reads the links of documents."""

    def __init__(self, timeout: float = DOCUMENT_TIMEOUT):
        super().__init__("speechgpt2.data.crawl.document_process", timeout, "unreadable")

    async def links(self, kind: str, body: bytes, content_type: str, source: DocumentSource) -> list[Link]:
        """Read links like `discover.links_of`. Raises `ItemRejected` also if a parser fails or does not end."""
        encoded = base64.b64encode(body).decode()
        request = {"kind": kind, "body": encoded, "content_type": content_type, "source": asdict(source)}
        return [Link(**link) for link in await self.ask(request)]


def _answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    source = request["source"]
    stated = DocumentSource(**{**source, "licence": Statement(**source["licence"])})
    try:
        links = links_of(request["kind"], base64.b64decode(request["body"]), request["content_type"], stated)
    except ItemRejected:
        raise
    except Exception as error:  # hostile text can cause any exception in the parsers
        raise ItemRejected("unreadable", f"{type(error).__name__}: {str(error)[:200]}") from error
    return [asdict(link) for link in links]


if __name__ == "__main__":
    serve(_answer)
