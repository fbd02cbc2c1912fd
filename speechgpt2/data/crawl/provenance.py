"""The provenance of an item: one WARC file, which any archive tool reads."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from speechgpt2.data.crawl.fetch import Document, HttpExchange

# Headers of the transport. A reader would decompress content that is stored uncompressed.
_TRANSPORT = ("content-encoding", "transfer-encoding")


def write(
    path: Path, exchanges: Sequence[HttpExchange], body: bytes | None, sha256: str, metadata: dict[str, Any],
    transcript: Document | None = None,
) -> None:  # fmt: skip
    """Write the WARC of one item.

    Args:
        path: the file to write.
        exchanges: requests and response heads.
        body: the content of a document; None if it is stored as a file.
        sha256: hash of the content.
        metadata: content of the metadata record; it has "fetched_at" and "url".
        transcript: the transcript of a recording.
    """
    date = metadata["fetched_at"]
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True, warc_version="1.1")
        for number, exchange in enumerate(exchanges, 1):
            is_last = number == len(exchanges)
            _write_exchange(writer, exchange, date, body if is_last else b"", sha256 if is_last else None)
        if transcript:
            for exchange in transcript.exchanges:
                content = transcript.body if exchange is transcript.exchanges[-1] else None
                _write_exchange(writer, exchange, date, content or b"", None)
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
        uri = exchanges[-1].url if exchanges else metadata["url"]
        writer.write_record(
            writer.create_warc_record(
                uri, "metadata", io.BytesIO(text), warc_content_type="application/json",
                warc_headers_dict={"WARC-Date": date},
            )
        )  # fmt: skip


def _write_exchange(
    writer: WARCWriter, exchange: HttpExchange, date: str, body: bytes | None, sha256: str | None
) -> None:
    warc_headers = {"WARC-Date": date, **({"WARC-Payload-Digest": f"sha256:{sha256}"} if sha256 else {})}
    if body is None:
        warc_headers["WARC-Truncated"] = "unspecified"  # the content is the file with that hash
    headers = [(f"X-Archive-Orig-{n}" if n.lower() in _TRANSPORT else n, v) for n, v in exchange.response]
    response_head = StatusAndHeaders(f"{exchange.status} {exchange.reason}".strip(), headers, protocol="HTTP/1.1")
    response = writer.create_warc_record(
        exchange.url,
        "response",
        io.BytesIO(body or b""),
        len(body or b""),
        http_headers=response_head,
        warc_headers_dict=warc_headers,
    )
    request_head = StatusAndHeaders("GET / HTTP/1.1", list(exchange.request), is_http_request=True)
    request_head.statusline = f"GET {_target(exchange.url)} HTTP/1.1"
    request = writer.create_warc_record(
        exchange.url, "request", http_headers=request_head, warc_headers_dict={"WARC-Date": date}
    )
    writer.write_request_response_pair(request, response)


def read_body(path: Path) -> tuple[bytes, str] | None:
    """Return the text of a document and its Content-Type from its WARC; None if there is none."""
    try:
        with path.open("rb") as file:
            for record in ArchiveIterator(file):
                if record.rec_type == "response" and record.http_headers.get_statuscode() == "200":
                    return record.raw_stream.read(), record.http_headers.get_header("Content-Type") or ""
    except (FileNotFoundError, ArchiveLoadFailed):
        return None
    return None


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as in WARC: 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _target(url: str) -> str:
    return "/" + url.split("://", 1)[-1].partition("/")[2]
