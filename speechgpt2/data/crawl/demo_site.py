"""A small local web site with spoken episodes and the difficult cases of a crawl, to demonstrate the crawler.

    python -m speechgpt2.data.crawl.demo_site FOLDER      serve and crawl it, and compare the result with `EXPECTED`
    python -m speechgpt2.data.crawl.demo_site --serve     only serve it, for your own crawl or a browser

`sg2 data demo` adds two feeds of longer talks, and also cleans and labels the clips. The voices are
synthetic (``speechgpt2[synthesis]``); nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import yaml
from aiohttp import web

from speechgpt2.audio import to_pcm16
from speechgpt2.data.crawl import manifest
from speechgpt2.tts.utterance import Word
from speechgpt2.types import SAMPLE_RATE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PRIVATE_URL = "http://10.0.0.1/inside.mp3"  # which a crawler must not reach
_CC_BY = "https://creativecommons.org/licenses/by/4.0/"
_GAP = 0.4  # seconds between the sentences of an episode
TALKS, _SENTENCES = 10, 20  # talks per language, enough for captions; sentences per talk
_WOMEN = 47  # index of the first female voice among the training voices
_EPISODES = {
    "weather": ("en", "Good morning. How is the weather today?", "It is cold, but the sun is out. Take a warm coat."),
    "kitchen": ("en", "What are we cooking tonight?", "Soup with carrots and beans. It takes about half an hour."),
    "travel": ("en", "When does the next train leave?", "At a quarter past nine, from the second platform."),
    "library": ("en", "Do you have books about birds?", "Yes, on the third shelf on the left, next to the window."),
    "market": ("zh", "苹果多少钱一斤？", "五块钱一斤，今天的很甜。"),
    "music": ("en", "Who is playing the piano upstairs?", "My sister. She practises every day after school."),
    "secret": ("en", "This episode is not for everyone.", "All of its rights are reserved."),
    "hidden": ("en", "Robots may not read this.", "It lies where the rules say no."),
    "draft": ("en", "This is the first version of an episode.", "It will be replaced while you are listening."),
    "final": ("en", "This is the second version of an episode.", "It came while you were listening to the first."),
}

# The expected reason for every path; None if it is kept.
EXPECTED: dict[str, str | None] = {
    "/audio/weather.mp3": None,
    "/audio/kitchen.flac": None,
    "/moved/travel.wav": None,  # two redirects
    "/audio/library.ogg": None,  # found on a page of the sitemap
    "/audio/market.wav": None,
    "/audio/music.flac": None,
    "/audio/replaced.wav": None,  # the connection breaks, and meanwhile the file is another
    "/mirror/kitchen.flac": "duplicate",  # the same bytes
    "/audio/music.wav": "duplicate",  # the same samples in another format
    "/audio/secret.mp3": "licence",
    "/private/hidden.wav": "robots",
    "/audio/broken.flac": "corrupt",
    "/audio/page.mp3": "not-audio",  # says audio/mpeg, holds HTML
    "/audio/silence.flac": "silent",
    "/audio/endless.mp3": "too-large",
    "/round/a": "redirect-loop",
    "/audio/inside.mp3": "private-address",  # a redirect to another machine of the network
    "/gone.wav": "http-404",
    "/laughs.xml": "entities",
}


class Visit(NamedTuple):
    """A request that a `DemoServer` answered; `range` is its Range header."""

    path: str
    range: str
    user_agent: str
    at: float


class DemoServer:
    """An HTTP server on 127.0.0.1 that records its requests.

    async with DemoServer(routes) as server:
        server.url("/")
    """

    def __init__(self, routes: Mapping[str, Handler], port: int = 0):
        self.visits: list[Visit] = []
        self._routes, self._port = routes, port

    async def __aenter__(self) -> DemoServer:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._runner.cleanup()

    def url(self, path: str) -> str:
        """Return the URL of a path of this server."""
        return f"http://127.0.0.1:{self._port}{path}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        now = asyncio.get_running_loop().time()
        self.visits.append(Visit(request.path, headers.get("Range", ""), headers.get("User-Agent", ""), now))
        handler = self._routes.get(request.path)
        return web.Response(status=404) if handler is None else await handler(request)  # type: ignore[arg-type]


@contextlib.contextmanager
def in_background(server: DemoServer) -> Iterator[DemoServer]:
    """Serve in a thread, for a program that crawls in the same process. Raises `OSError` if the port is taken."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def text(body: str, content_type: str = "text/html") -> Handler:
    """Return a handler that serves text with an ETag, and 304 to a client that has it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(text=body, content_type=content_type)
        response.etag = tag = f"t{len(body)}"
        unchanged = any(etag.value == tag for etag in request.if_none_match or ())
        return web.Response(status=304) if unchanged else response

    return handler


def data(body: bytes, content_type: str = "audio/mpeg") -> Handler:
    """Return a handler that serves bytes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type)

    return handler


def redirect(location: str, status: int = 302) -> Handler:
    """Return a handler that redirects."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": location})

    return handler


def endless(content_type: str = "audio/mpeg") -> Handler:
    """Return a handler whose response does not end."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client closes the connection
            while True:
                await response.write(bytes(1 << 16))
        return response

    return handler


def replaced(first: bytes, second: bytes) -> Handler:
    """Return a handler for the stale-ETag case.

    The first response breaks off in the middle; then the file is another one, and a Range request gets 206 with bytes
    of the new file, whatever its If-Range says.
    """
    requests = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if requests == 1:
            response = web.StreamResponse(headers={"Content-Length": str(len(first)), "ETag": '"one"'})
            response.content_type = "audio/wav"
            await response.prepare(request)
            await response.write(first[: len(first) // 2])
            await asyncio.sleep(0.05)  # the client must read the first half before the connection breaks
            assert request.transport is not None
            request.transport.abort()
            return response
        start = request.http_range.start or 0
        content_range = {"Content-Range": f"bytes {start}-{len(second) - 1}/{len(second)}"} if start else {}
        return web.Response(
            body=second[start:], status=206 if start else 200, content_type="audio/wav",
            headers={"ETag": '"two"', **content_range},
        )  # fmt: skip

    return handler


class Episode(NamedTuple):
    """Audio, `pcm [N]` float32 at 24 kHz, and sentences with their times."""

    pcm: np.ndarray
    lines: tuple[Word, ...]


def speak_episode(language: str, *sentences: str, speakers: tuple[int, int] = (5, 35)) -> Episode:
    """Speak the sentences by two of the training voices in turn. Raises `MissingDependency`."""
    from speechgpt2.tts.voices import speak, training_voices

    voices = training_voices(language)
    pause = np.zeros(int(_GAP * SAMPLE_RATE), np.float32)
    parts, lines, at = [], [], 0.0
    for i, words in enumerate(sentences):
        pcm = speak(words, voices[speakers[i % 2]]).pcm
        parts += [pcm, pause]
        lines.append(Word(words, at, at + len(pcm) / SAMPLE_RATE))
        at += (len(pcm) + len(pause)) / SAMPLE_RATE
    return Episode(np.concatenate(parts), tuple(lines))


def speak_site() -> dict[str, np.ndarray]:
    """Return the audio of all episodes by name. Raises `MissingDependency`."""
    return {name: speak_episode(*episode).pcm for name, episode in _EPISODES.items()}


def speak_talks(count: int = TALKS) -> dict[str, list[Episode]]:
    """Return `count` talks of about a minute for each language. Raises `MissingDependency`."""
    from speechgpt2.curriculum.sentences import sentence

    talks: dict[str, list[Episode]] = {}
    for language in ("en", "zh"):
        rng = random.Random(f"talks/{language}")
        texts = [[sentence(rng, language) for _ in range(_SENTENCES)] for _ in range(count)]
        talks[language] = [
            speak_episode(language, *sentences, speakers=(2 * number, _WOMEN + number))
            for number, sentences in enumerate(texts)
        ]
    return talks


def subtitles(lines: Sequence[Word]) -> str:
    """Write WebVTT."""

    def clock(seconds: float) -> str:
        minutes, ms = divmod(round(1000 * seconds), 60_000)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}.{ms % 1000:03d}"

    return "WEBVTT\n" + "".join(f"\n{clock(start)} --> {clock(end)}\n{text}\n" for text, start, end in lines)


def encode(pcm: np.ndarray, format: str) -> bytes:
    """Encode `pcm [N]` at 24 kHz as a WAV, FLAC, OGG or MP3 file."""
    file = io.BytesIO()
    samples = np.frombuffer(to_pcm16(pcm), "<i2")  # rounded here, since libsndfile rounds differently for each format
    soundfile.write(file, samples, SAMPLE_RATE, format=format)
    return file.getvalue()


def routes_of(pcm: Mapping[str, np.ndarray], private_url: str) -> dict[str, Handler]:
    """Return the routes of the site.

    Args:
        pcm: the audio of `_EPISODES`.
        private_url: where a redirect leads that must not be followed.
    """
    flac = encode(pcm["kitchen"], "FLAC")
    transcripts = {name: " ".join(sentences) for name, (_, *sentences) in _EPISODES.items()}
    kitchen = subtitles([Word(transcripts["kitchen"], 0.0, len(pcm["kitchen"]) / SAMPLE_RATE - _GAP)])
    return {
        "/robots.txt": text("User-agent: *\nDisallow: /private/\n", "text/plain"),
        "/feed.xml": text(_FEED, "application/rss+xml"),
        "/laughs.xml": text(_LAUGHS, "application/rss+xml"),
        "/sitemap.xml": text(_SITEMAP, "application/xml"),
        "/library.html": text(_LIBRARY),
        "/market.html": text(_MARKET),
        "/audio/weather.mp3": data(encode(pcm["weather"], "MP3")),
        "/audio/weather.txt": text(transcripts["weather"], "text/plain"),
        "/audio/kitchen.flac": data(flac, "audio/flac"),
        "/audio/kitchen.vtt": text(kitchen, "text/vtt"),
        "/mirror/kitchen.flac": data(flac, "application/octet-stream"),
        "/moved/travel.wav": redirect("/moved/again", 301),
        "/moved/again": redirect("/audio/travel.wav"),
        "/audio/travel.wav": data(encode(pcm["travel"], "WAV"), "audio/wav"),
        "/audio/library.ogg": data(encode(pcm["library"], "OGG"), "audio/ogg"),
        "/audio/market.wav": data(encode(pcm["market"], "WAV"), "audio/x-wav"),
        "/audio/music.flac": data(encode(pcm["music"], "FLAC"), "audio/flac"),
        "/audio/music.wav": data(encode(pcm["music"], "WAV"), "audio/wav"),
        "/audio/secret.mp3": data(encode(pcm["secret"], "MP3")),
        "/private/hidden.wav": data(encode(pcm["hidden"], "WAV"), "audio/wav"),
        "/audio/replaced.wav": replaced(encode(pcm["draft"], "WAV"), encode(pcm["final"], "WAV")),
        "/audio/broken.flac": data(flac[: len(flac) // 3], "audio/flac"),
        "/audio/page.mp3": data(b"<html>No such episode.</html>" * 50),
        "/audio/silence.flac": data(encode(np.zeros(30 * SAMPLE_RATE, np.float32), "FLAC"), "audio/flac"),
        "/audio/endless.mp3": endless(),
        "/round/a": redirect("/round/b"),
        "/round/b": redirect("/round/a"),
        "/audio/inside.mp3": redirect(private_url),
    }


def talk_routes(talks: Mapping[str, Sequence[Episode]]) -> dict[str, Handler]:
    """Return the routes of the talks: a feed for each language, recordings and subtitles."""
    routes: dict[str, Handler] = {}
    for language, spoken in talks.items():
        items = ""
        for number, talk in enumerate(spoken):
            path = f"/talks/{language}-{number}"
            items += _episode(f"{path}.flac", f"Talk {number}", _transcript(f"{path}.vtt", "text/vtt"))
            routes[f"{path}.flac"] = data(encode(talk.pcm, "FLAC"), "audio/flac")
            routes[f"{path}.vtt"] = text(subtitles(talk.lines), "text/vtt")
        routes[f"/talks-{language}.xml"] = text(_TALKS.format(language, items), "application/rss+xml")
    return routes


def seeds_of(server: DemoServer, *feed_paths: str) -> dict[str, Any]:
    """Return the seeds.yaml of the site; `feed_paths` are paths of further feeds."""
    feeds = [{"kind": "feed", "url": server.url(path)} for path in ("/feed.xml", "/laughs.xml", *feed_paths)]
    return {
        "contact": "nobody@localhost",
        "seeds": [*feeds, {"kind": "sitemap", "url": server.url("/sitemap.xml"), "licence": "CC0-1.0"}],
        "backoff": 0.1,
        "polite": {"delay": 0.02},
        "fetch": {"allow_networks": ["127.0.0.1/32"], "max_recording_mb": 5},
    }


def compare(folder: Path, server: DemoServer) -> list[str]:
    """Return a line for every difference between the crawl in `folder` and `EXPECTED`."""
    actual: dict[str, str | None] = dict.fromkeys(manifest.kept_urls(folder))
    actual.update(manifest.rejected_urls(folder))
    expected = {server.url(path): reason for path, reason in EXPECTED.items()}
    pairs = {url: (actual.get(url, "not seen"), expected.get(url, "not seen")) for url in {*actual, *expected}}
    return [f"{url}: {was}, expected {should}" for url, (was, should) in sorted(pairs.items()) if was != should]


async def serve(folder: Path | None, port: int) -> int:
    """Serve the site, for one crawl into `folder`, or until interrupted without one. Returns an exit code."""
    from speechgpt2.data.crawl.crawler import Crawl
    from speechgpt2.data.crawl.seeds import load

    async with DemoServer(routes_of(speak_site(), private_url=PRIVATE_URL), port) as server:
        plan = yaml.safe_dump(seeds_of(server), sort_keys=False)
        if folder is None:
            print(f"# the site runs until Ctrl-C; save this as seeds.yaml and crawl it\n{plan}", flush=True)
            await asyncio.Event().wait()
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seeds.yaml").write_text(plan, encoding="utf-8")
        crawl = Crawl(load(folder / "seeds.yaml"), folder)
        crawl.prepare()
        totals = await crawl.run()
        crawl.close()
        differences = compare(folder, server)
        print(f"{folder}: {totals.recordings} recordings, {totals.hours * 3600:.1f} s; rejected {totals.rejected}")
        print("\n".join(differences) or f"all {len(EXPECTED)} items are as expected")
        return 1 if differences else 0


def main() -> None:
    """Run the demonstration from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--serve", action="store_true", help="only serve")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve == (arguments.folder is not None):
        parser.error("give a FOLDER to crawl into, or --serve")
    sys.exit(asyncio.run(serve(arguments.folder, arguments.port)))


def _episode(path: str, title: str, extra: str = "") -> str:
    return f'<item><title>{title}</title><enclosure url="{path}" type="audio/mpeg" length="1"/>{extra}</item>'


def _transcript(path: str, type: str) -> str:
    return f'<podcast:transcript url="{path}" type="{type}"/>'


_FEED = f"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:podcast="https://podcastindex.org/namespace/1.0"
     xmlns:creativeCommons="http://backend.userland.com/creativeCommonsRssModule">
<channel><title>Small talk</title><language>en</language>
<copyright>© 2026 nobody</copyright><creativeCommons:license>{_CC_BY}</creativeCommons:license>
{_episode("/audio/weather.mp3", "Weather", _transcript("/audio/weather.txt", "text/plain"))}
{
    _episode(
        "/audio/kitchen.flac",
        "Kitchen",
        "<podcast:license>cc-by-4.0</podcast:license>" + _transcript("/audio/kitchen.vtt", "text/vtt"),
    )
}
{_episode("/mirror/kitchen.flac", "Kitchen, once more")}
{_episode("/moved/travel.wav", "Travel", _transcript("/gone.srt", "application/srt"))}
{_episode("/audio/music.flac", "Music")}
{_episode("/audio/music.wav", "Music, in another format")}
{_episode("/audio/secret.mp3", "Secret", "<podcast:license>All rights reserved</podcast:license>")}
{_episode("/private/hidden.wav", "Hidden")}
{_episode("/audio/replaced.wav", "Replaced")}
{_episode("/audio/broken.flac", "Broken")}
{_episode("/audio/page.mp3", "A page")}
{_episode("/audio/silence.flac", "Silence")}
{_episode("/audio/endless.mp3", "Endless")}
{_episode("/round/a", "In circles")}
{_episode("/audio/inside.mp3", "Inside")}
{_episode("/gone.wav", "../../../etc/passwd")}
</channel></rss>
"""

_TALKS = f"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:podcast="https://podcastindex.org/namespace/1.0"
     xmlns:creativeCommons="http://backend.userland.com/creativeCommonsRssModule">
<channel><title>Talks</title><language>{{}}</language><creativeCommons:license>{_CC_BY}</creativeCommons:license>
{{}}</channel></rss>
"""

_LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<rss version="2.0"><channel><title>&c;</title></channel></rss>
"""

_SITEMAP = """<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
<url><loc>/library.html</loc></url><url><loc>/market.html</loc></url>
</urlset>
"""

_LIBRARY = """<!doctype html><html lang="en"><title>The library</title>
<p><audio src="/audio/library.ogg"></audio> <a rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">CC0</a>
<a href="/market.html">To the market</a></html>
"""

_MARKET = """<!doctype html><html lang="zh"><title>市场</title><a href="/audio/market.wav">听一听</a></html>
"""

if __name__ == "__main__":
    main()
