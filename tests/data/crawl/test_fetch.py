"""HTTP with real servers: guarded, limited, resumed, and never fooled into joining two versions of a file."""

import asyncio
import gzip
import time
from contextlib import asynccontextmanager

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from aiohttp import web

from speechgpt2.data.crawl import demo_site
from speechgpt2.data.crawl.fetch import FetchConfig, Fetcher
from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater

LOCAL = ("127.0.0.0/8",)
BODY = bytes(range(256)) * 4000  # 1 MB


async def permit(url: str) -> None:
    """Everybody may."""


def fetch(routes, action, **limits):
    """Run `action(fetcher, server)` against a site."""

    async def run():
        config = FetchConfig(**{"allow_networks": LOCAL, "idle_seconds": 5.0, **limits})
        async with demo_site.DemoServer(routes) as server, Fetcher(config, "test") as fetcher:
            return await action(fetcher, server)

    return asyncio.run(run())


def refused(routes, path="/a", **limits) -> ItemRejected | RetryLater:
    """What comes of downloading `path`."""

    async def action(fetcher, server):
        with pytest.raises((ItemRejected, RetryLater)) as rejection:
            await fetcher.document(server.url(path), permit)
        return rejection.value

    return fetch(routes, action, **limits)


class Versions:
    """A file that the server may cut after `cut` bytes, with the manners of a server to Range and If-Range."""

    def __init__(self, body=BODY, etag='"one"', cut=None, ranges=True, heeds_if_range=True):
        self.body, self.etag, self.cut, self.ranges, self.heeds = body, etag, cut, ranges, heeds_if_range
        self.asked = []

    async def __call__(self, request):
        self.asked.append((request.headers.get("Range"), request.headers.get("If-Range")))
        start = request.http_range.start or 0 if self.ranges else 0
        if self.heeds and start and request.headers.get("If-Range") != self.etag:
            start = 0
        if start >= len(self.body):
            return web.Response(status=416)
        response = web.StreamResponse(
            status=206 if start else 200, headers={"Content-Length": str(len(self.body) - start)}
        )
        response.content_type = "audio/wav"
        if self.etag:
            response.headers["ETag"] = self.etag
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        await response.prepare(request)
        if self.cut is not None:
            cut, self.cut = self.cut, None
            await response.write(self.body[start : start + cut])
            await asyncio.sleep(0.05)
            request.transport.abort()
        else:
            await response.write(self.body[start:])
        return response


def download_twice(tmp_path, first: Versions, second: Versions):
    """Download, cut by the first server, and again from the second; returns (first fault, body, validator)."""
    versions = [first, second]

    async def handler(request):
        return await versions[0](request)

    async def action(fetcher, server):
        kept = {}
        remember = lambda validator: (kept.clear(), kept.update(validator))  # noqa: E731
        with pytest.raises(RetryLater) as fault:
            await fetcher.download(server.url("/a"), tmp_path / "body", permit, {}, remember)
        versions.pop(0)
        result = await fetcher.download(server.url("/a"), tmp_path / "body", permit, dict(kept), remember)
        assert result.validator == kept
        return fault.value, (tmp_path / "body").read_bytes()

    return fetch({"/a": handler}, action)


def test_broken_download_is_resumed(tmp_path):
    first, second = Versions(cut=400_000), Versions()
    _, body = download_twice(tmp_path, first, second)
    assert body == BODY
    ((asked, condition),) = second.asked
    assert condition == '"one"' and 0 < int(asked.removeprefix("bytes=").rstrip("-")) <= 400_000


OTHER = BODY[::-1]


@pytest.mark.parametrize(
    "second, requests",
    [
        (Versions(OTHER, '"two"'), 1),  # a good server: 200
        (Versions(OTHER, '"two"', heeds_if_range=False), 2),  # the trap: 206 with bytes of the new version
        (Versions(OTHER, None, heeds_if_range=False), 2),  # 206 that does not say of which version
        (Versions(OTHER[:1000], '"two"', heeds_if_range=False), 2),  # 416: shorter than what we have
        (Versions(OTHER, '"two"', ranges=False), 1),
    ],
)
def test_parts_of_two_versions_are_not_joined(tmp_path, second, requests):
    _, body = download_twice(tmp_path, Versions(cut=400_000), second)
    assert body == second.body
    assert len(second.asked) == requests


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_download_without_strong_validator_restarts(tmp_path, etag):
    second = Versions(OTHER, etag, heeds_if_range=False)
    _, body = download_twice(tmp_path, Versions(etag=etag, cut=400_000), second)
    assert body == OTHER and second.asked == [(None, None)]


def test_broken_resume_counts_as_progress(tmp_path):
    async def action(fetcher, server):
        (tmp_path / "body").write_bytes(BODY[:1000])
        with pytest.raises(RetryLater) as fault:
            await fetcher.download(server.url("/a"), tmp_path / "body", permit, {"etag": '"one"'}, print)
        return fault.value

    assert fetch({"/a": Versions(cut=5000)}, action).progress
    assert (tmp_path / "body").read_bytes() == BODY[:6000]


def test_documents_are_asked_for_again_only_if_they_changed():
    async def action(fetcher, server):
        first = await fetcher.document(server.url("/a"), permit)
        again = await fetcher.document(server.url("/a"), permit, first.validator)
        changed = await fetcher.document(server.url("/a"), permit, {"etag": '"another"'})
        return first.body, again.body, changed.body

    assert fetch({"/a": demo_site.text("text")}, action) == (b"text", None, b"text")


def test_redirects_are_permitted_one_by_one():
    asked = []

    async def note(url):
        asked.append(url.rpartition("/")[2])
        if url.endswith("/no"):
            raise ItemRejected("robots", "no")

    routes = {
        "/a": demo_site.redirect("/b", 301),
        "/b": demo_site.redirect("c", 307),
        "/c": demo_site.text("here"),
        "/x": demo_site.redirect("/no"),
    }

    async def action(fetcher, server):
        document = await fetcher.document(server.url("/a"), note)
        with pytest.raises(ItemRejected, match="robots"):
            await fetcher.document(server.url("/x"), note)
        return document, [visit.path for visit in server.visits]

    document, visits = fetch(routes, action)
    assert document.body == b"here" and [e.status for e in document.exchanges] == [301, 307, 200]
    assert asked == ["a", "b", "c", "x", "no"] and visits == ["/a", "/b", "/c", "/x"]


@pytest.mark.parametrize(
    "location, reason",
    [
        ("/a", "redirect-loop"),
        ("http://10.0.0.1/", "private-address"),
        ("http://[::1]:1/", "private-address"),
        ("http://169.254.169.254/latest/meta-data/", "private-address"),
        ("http://0.0.0.0/", "private-address"),
        ("file:///etc/passwd", "bad-url"),
        ("//name:word@127.0.0.1/", "bad-url"),
    ],
)
def test_forbidden_redirects_are_rejected(location, reason):
    assert refused({"/a": demo_site.redirect(location)}).reason == reason


def test_chain_of_redirects_has_an_end():
    async def ever(request):
        return await demo_site.redirect(f"/?{time.monotonic_ns()}")(request)

    assert refused({"/": ever}, "/").reason == "redirect-loop"


def test_host_is_checked_by_the_address_it_resolves_to():
    async def action(fetcher, server):
        with pytest.raises(ItemRejected) as rejection:
            await fetcher.document(server.url("/a").replace("127.0.0.1", "localhost"), permit)
        return rejection.value.reason, server.visits

    assert fetch({"/a": demo_site.text("secret")}, action, allow_networks=()) == ("private-address", [])
    assert refused({"/a": demo_site.text("secret")}, allow_networks=("10.0.0.0/8",)).reason == "private-address"


@pytest.mark.parametrize(
    "status, kind, after",
    [
        (404, ItemRejected, None),
        (401, ItemRejected, None),
        (429, RetryLater, 7.0),
        (503, RetryLater, 7.0),
        (500, RetryLater, 7.0),
    ],
)
def test_statuses(status, kind, after):
    async def handler(request):
        return web.Response(status=status, headers={"Retry-After": "7"})

    fault = refused({"/a": handler})
    assert isinstance(fault, kind)
    assert getattr(fault, "after", None) == after


@pytest.mark.parametrize(
    "text, least, most", [("Fri, 01 Jan 2100 00:00:00 GMT", 3600, 3600), ("9" * 40, 3600, 3600), ("soon", None, None)]
)
def test_pauses_that_a_server_asks_for_are_bounded(text, least, most):
    async def handler(request):
        return web.Response(status=503, headers={"Retry-After": text})

    after = refused({"/a": handler}).after
    assert after is None if least is None else least <= after <= most


async def packed_bomb(request):
    return web.Response(body=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"})


async def packed_badly(request):
    return web.Response(body=b"not gzip", headers={"Content-Encoding": "gzip"})


def test_documents_have_a_size():
    assert refused({"/a": demo_site.endless("text/html")}, max_document_mb=1.0).reason == "too-large"
    assert refused({"/a": packed_bomb}, max_document_mb=1.0).reason == "too-large"
    assert refused({"/a": packed_badly}).reason == "corrupt"


def test_compressed_documents_are_decompressed():
    async def handler(request):
        return web.Response(body=gzip.compress(b"text" * 1000), headers={"Content-Encoding": "gzip"})

    async def action(fetcher, server):
        return (await fetcher.document(server.url("/a"), permit)).body

    assert fetch({"/a": handler}, action) == b"text" * 1000


async def trickle(request):
    response = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
    await response.prepare(request)
    try:
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)
    except ConnectionError:
        return response


async def compressed_audio(request):
    return web.Response(body=gzip.compress(b"x"), content_type="audio/mpeg", headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    "handler, reason",
    [
        (demo_site.endless(), "too-large"),
        (demo_site.data(BODY * 3), "too-large"),  # announced: not a byte of it is written
        (demo_site.data(b"<html>", "text/html"), "type"),
        (demo_site.data(b"x", "image/png"), "type"),
        (compressed_audio, "type"),
        (trickle, "endless"),
    ],
)
def test_recordings_have_a_size_a_time_and_a_type(tmp_path, handler, reason):
    async def action(fetcher, server):
        with pytest.raises(ItemRejected) as rejection:
            await fetcher.download(server.url("/a"), tmp_path / "body", permit, {}, lambda validator: None)
        return rejection.value.reason

    assert fetch({"/a": handler}, action, max_recording_mb=2.0, max_seconds=0.5) == reason
    assert not (tmp_path / "body").exists() or (tmp_path / "body").stat().st_size <= 2_000_000


@asynccontextmanager
async def raw_server(answer: bytes):
    """A server that sends these bytes, whatever is asked, and hangs up."""

    async def speak(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"


SHORT = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 1000\r\n\r\nonly this"
LONG = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 4\r\n\r\nfour and more"


@pytest.mark.parametrize(
    "answer, outcome",
    [
        (SHORT, RetryLater),
        (LONG, ItemRejected),
        (b"SSH-2.0-OpenSSH_9.0\r\n", ItemRejected),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", ItemRejected),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n", ItemRejected),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (ItemRejected, RetryLater)),
        (b"HTTP/1.1 302 FilterResult\r\nLocation: http://\xff\xfe/\r\n\r\n", ItemRejected),
        (b"", RetryLater),
    ],
)
def test_contradictory_servers_are_rejected(tmp_path, answer, outcome):
    async def run():
        config = FetchConfig(allow_networks=LOCAL, idle_seconds=5.0)
        async with raw_server(answer) as url, Fetcher(config, "test") as fetcher:
            await fetcher.download(url, tmp_path / "body", permit, {}, lambda validator: None)

    with pytest.raises(outcome):
        asyncio.run(run())


def test_silent_server_times_out():
    async def handler(request):
        await asyncio.sleep(1.0)
        return web.Response()

    assert "silent" in refused({"/a": handler}, idle_seconds=0.2).detail
