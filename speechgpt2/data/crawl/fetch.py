"""An HTTP client for untrusted servers: guarded addresses, limits on size and time, resumed downloads.

Every request, also each step of a redirect, first waits for `check_access`, which decides whether and when a URL may be
requested. A server's statements (length, type, encoding) are not trusted.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import aiohttp
from yarl import URL

from speechgpt2.data.crawl import urls
from speechgpt2.data.crawl.address_guard import AddressGuard, ForbiddenAddress
from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater

CheckAccess = Callable[[str], Awaitable[None]]  # returns when the URL may be requested
Remember = Callable[[dict[str, str]], None]  # stores a validator: the version of a partial file

REDIRECTS = (301, 302, 303, 307, 308)
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # statuses of temporary errors
MEDIA_TYPES = re.compile(r"audio/|video/|application/(ogg|octet-stream|x-flac|mp4)$|binary/octet-stream$|$")
CONNECT_SECONDS = 20.0
LONGEST_PAUSE = 3600.0  # seconds: the longest Retry-After that is obeyed
CHUNK = 1 << 16
NETWORK_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)  # not those of the local disk


@dataclass(frozen=True)
class FetchConfig:
    """Limits of a request.

    Attributes:
        allow_networks: networks that may be reached besides public addresses.
        max_redirects: redirects of a request.
        max_document_mb: size of a feed, sitemap, page or transcript.
        max_recording_mb: size of a recording.
        max_seconds: duration of a download.
        idle_seconds: time without a byte, after which a download is given up.
    """

    allow_networks: tuple[str, ...] = ()
    max_redirects: int = 8
    max_document_mb: float = 16.0
    max_recording_mb: float = 2048.0
    max_seconds: float = 3600.0
    idle_seconds: float = 60.0


class HttpExchange(NamedTuple):
    """A request and the head of its response, as sent and received."""

    url: str
    request: tuple[tuple[str, str], ...]
    status: int
    reason: str
    response: tuple[tuple[str, str], ...]


class Document(NamedTuple):
    """A fetched text; `body` is None if the server says that it is unchanged."""

    url: str  # after redirects
    body: bytes | None
    content_type: str
    validator: dict[str, str]
    exchanges: list[HttpExchange]


class Download(NamedTuple):
    """A fetched file, complete at the caller's path."""

    url: str  # after redirects
    content_type: str
    validator: dict[str, str]
    exchanges: list[HttpExchange]


class Fetcher:
    """An HTTP client: `async with Fetcher(config, user_agent) as fetcher`. `received` counts bytes from the network."""

    def __init__(self, config: FetchConfig, user_agent: str):
        self.config, self.user_agent, self.received = config, user_agent, 0
        self._guard = AddressGuard(config.allow_networks)

    async def __aenter__(self) -> Fetcher:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self.config.idle_seconds)
        # No cookies, no proxy from the environment, no automatic decompression.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._guard.socket),
            headers={"User-Agent": self.user_agent, "Accept-Encoding": "identity"},
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
        )  # fmt: skip
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def document(self, url: str, check_access: CheckAccess, validator: dict[str, str] | None = None) -> Document:
        """Fetch a text; with the `validator` of an earlier response, only if it changed.

        Raises:
            ItemRejected: it cannot be fetched.
            RetryLater: a temporary error.
        """
        conditions = {"etag": "If-None-Match", "last_modified": "If-Modified-Since"}
        headers = {conditions[key]: value for key, value in (validator or {}).items() if key in conditions}
        async with self._open(url, headers, check_access) as (response, exchanges):
            content_type = response.headers.get("Content-Type", "")
            if response.status == 304 and headers:
                return Document(exchanges[-1].url, None, content_type, validator or {}, exchanges)
            _check_status(response, {200})
            body = await self._body(response, int(self.config.max_document_mb * 1e6))
            return Document(exchanges[-1].url, body, content_type, _validator(response), exchanges)

    async def download(
        self, url: str, to: Path, check_access: CheckAccess, validator: dict[str, str], remember: Remember
    ) -> Download:
        """Fetch a recording into the file `to`, and resume if the file has the version `validator`.

        `remember` is called with the new validator before the first byte of another version is written.

        Raises:
            ItemRejected: it cannot be fetched.
            RetryLater: a temporary error.
        """
        offset = to.stat().st_size if to.exists() else 0
        version = _if_range(validator)
        resume = {"Range": f"bytes={offset}-", "If-Range": version} if offset and version else {}
        async with self._open(url, resume, check_access) as (response, exchanges):
            _check_status(response, {200, 206, 416} if resume else {200})
            if response.status == 206 and _continues(response, offset, validator):
                await self._receive(response, to, offset)
                return Download(exchanges[-1].url, response.content_type, validator, exchanges)
            if response.status == 200:
                validator = _validator(response)
                remember(validator)
                await self._receive(response, to, 0)
                return Download(exchanges[-1].url, response.content_type, validator, exchanges)
        # 206 of another version, or 416: the server ignores If-Range or contradicts its earlier answer.
        to.unlink()
        return await self.download(url, to, check_access, {}, remember)

    @asynccontextmanager
    async def _open(
        self, url: str, headers: dict[str, str], check_access: CheckAccess
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, list[HttpExchange]]]:
        """Open a URL after redirects, and yield the response with every exchange.

        Network errors become `ItemRejected` or `RetryLater`.
        """
        exchanges: list[HttpExchange] = []
        try:
            response = await self._follow(url, headers, check_access, exchanges)
            try:
                yield response, exchanges
            finally:
                response.close()  # a connection with unread data is not reused
        except NETWORK_ERRORS as error:
            raise _item_error(error) from error

    async def _follow(
        self, url: str, headers: dict[str, str], check_access: CheckAccess, exchanges: list[HttpExchange]
    ) -> aiohttp.ClientResponse:
        while True:
            if any(url == exchange.url for exchange in exchanges):
                raise ItemRejected("redirect-loop", f"leads back to {url}")
            if len(exchanges) > self.config.max_redirects:
                raise ItemRejected("redirect-loop", f"more than {self.config.max_redirects} redirects")
            await check_access(url)
            response = await self._session.get(URL(url, encoded=True), headers=headers, allow_redirects=False)
            exchanges.append(_exchange(url, response))
            if response.status not in REDIRECTS or "Location" not in response.headers:
                return response
            response.close()
            url = urls.normalise(response.headers["Location"], base=url)

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        unpack, body = _unpacker(response.headers.get("Content-Encoding", "identity").lower().strip()), bytearray()
        async for chunk in self._chunks(response):
            body += unpack(chunk, limit + 1 - len(body))
            if len(body) > limit:
                raise ItemRejected("too-large", f"more than {limit / 1e6:g} MB")
        return bytes(body)

    async def _receive(self, response: aiohttp.ClientResponse, to: Path, offset: int) -> None:
        """Write the body after the first `offset` bytes of the file.

        Raises:
            ItemRejected: its type or size is not accepted.
            RetryLater: the connection broke.
        """
        limit = int(self.config.max_recording_mb * 1e6)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ItemRejected(
                "type",
                f"the server compressed it ({response.headers['Content-Encoding']}) although identity was requested",
            )
        if not MEDIA_TYPES.match(response.headers.get("Content-Type", "").partition(";")[0].strip().lower()):
            raise ItemRejected("type", f"{response.content_type} is not audio")
        if offset + (response.content_length or 0) > limit:
            raise ItemRejected("too-large", f"{response.content_length} bytes announced, the limit is {limit}")
        size = offset
        try:
            with to.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                async for chunk in self._chunks(response):
                    size += len(chunk)
                    if size > limit:
                        raise ItemRejected("too-large", f"no end after {limit} bytes")
                    file.write(chunk)
        except NETWORK_ERRORS as error:
            item_error = _item_error(error)
            if isinstance(item_error, RetryLater):
                item_error.progress = bool(offset) and size > offset
            raise item_error from error
        total = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        if total and size < int(total[1]):
            raise RetryLater(f"{size} of {total[1]} bytes received", progress=size > offset)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        end = time.monotonic() + self.config.max_seconds
        async for chunk in response.content.iter_chunked(CHUNK):
            if time.monotonic() > end:
                raise ItemRejected("endless", f"no end after {self.config.max_seconds:g} s")
            self.received += len(chunk)
            yield chunk


def _exchange(url: str, response: aiohttp.ClientResponse) -> HttpExchange:
    def decode(pairs: object) -> tuple[tuple[str, str], ...]:
        return tuple((str(name), str(value)) for name, value in pairs)  # type: ignore[attr-defined]

    sent = decode(response.request_info.headers.items())
    raw = ((n.decode("latin-1"), v.decode("latin-1")) for n, v in response.raw_headers)
    return HttpExchange(url, sent, response.status, response.reason or "", decode(raw))


def _validator(response: aiohttp.ClientResponse) -> dict[str, str]:
    names = {"etag": "ETag", "last_modified": "Last-Modified"}
    return {key: response.headers[name] for key, name in names.items() if name in response.headers}


def _if_range(validator: dict[str, str]) -> str | None:
    """Return the value for If-Range: a strong ETag, or the date if there is no ETag."""
    if "etag" in validator:
        return None if validator["etag"].startswith("W/") else validator["etag"]
    return validator.get("last_modified")


def _continues(response: aiohttp.ClientResponse, offset: int, validator: dict[str, str]) -> bool:
    """Whether a 206 continues the partial file: the same version, from the requested offset.

    Some servers ignore If-Range and answer 206 with bytes of a new version. So the response's own validator decides.
    """
    current = _validator(response)
    shared = [key for key in ("etag", "last_modified") if key in current and key in validator]
    same_version = bool(shared) and current[shared[0]] == validator[shared[0]]
    return same_version and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _check_status(response: aiohttp.ClientResponse, expected: set[int]) -> None:
    if response.status in expected:
        return
    if response.status in TEMPORARY:
        raise RetryLater(f"the server responds with {response.status}", after=_retry_after(response))
    raise ItemRejected(f"http-{response.status}", f"the server responds with {response.status} {response.reason}")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return the seconds of the Retry-After header, a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_PAUSE)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), LONGEST_PAUSE)
    except (ValueError, TypeError):
        return None


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """Return a function (chunk, limit) that decompresses a chunk to at most `limit` bytes."""
    if encoding in ("", "identity"):
        return lambda chunk, limit: chunk
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ItemRejected("type", f"the server compressed it ({encoding}) although identity was requested")
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(chunk: bytes, limit: int) -> bytes:
        try:
            return unzip.decompress(chunk, max(1, limit))
        except zlib.error as error:
            raise ItemRejected("corrupt", f"its {encoding} data is damaged ({error})") from None

    return unpack


def _item_error(error: Exception) -> ItemRejected | RetryLater:
    """Return the item's error for a network error."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ForbiddenAddress):
        return ItemRejected("private-address", f"{error.host}: {error.os_error}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ItemRejected("certificate", f"{error.host}: its certificate is not valid")
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.ClientResponseError)) and not isinstance(
        error, aiohttp.ServerDisconnectedError
    ):
        return ItemRejected("bad-http", f"the response is not HTTP ({str(error)[:200] or type(error).__name__})")
    if isinstance(error, asyncio.TimeoutError):
        return RetryLater("the server was silent for too long")
    return RetryLater(str(error)[:200] or type(error).__name__)
