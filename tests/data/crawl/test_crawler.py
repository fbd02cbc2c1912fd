"""Whole crawls of a real site: what comes out, and that neither kills nor company change it."""

import asyncio
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests import needs

needs.module("aiohttp", "crawl")

import yaml
from warcio.archiveiterator import ArchiveIterator

from speechgpt2.config import from_dict
from speechgpt2.data.crawl import demo_site, manifest
from speechgpt2.data.crawl.crawler import Crawl
from speechgpt2.data.crawl.seeds import CrawlConfig, load
from speechgpt2.data.crawl.takedown import take_down
from speechgpt2.data.crawl.videos import Video
from speechgpt2.data.record import Clip
from speechgpt2.errors import UserError

BY = "https://creativecommons.org/licenses/by/4.0/"
FAST = {
    "contact": "test@localhost",
    "backoff": 0.05,
    "polite": {"delay": 0.0, "robots_pause": 0.05},
    "fetch": {"allow_networks": ["127.0.0.0/8"], "max_recording_mb": 5, "idle_seconds": 10.0},
}


def configure(*seeds: dict, **changes) -> CrawlConfig:
    return from_dict(CrawlConfig, {**FAST, **changes, "seeds": list(seeds)})


def run(config: CrawlConfig, folder: Path, refresh: bool = False, **options):
    crawl = Crawl(config, folder, **options)
    crawl.prepare(refresh)
    try:
        return asyncio.run(crawl.run())
    finally:
        crawl.close()


def rss(*items: str, channel: str = f"<creativeCommons:license>{BY}</creativeCommons:license>") -> str:
    names = 'xmlns:creativeCommons="http://backend.userland.com/creativeCommonsRssModule"'
    return f'<rss version="2.0" {names}><channel><title>Show</title>{channel}{"".join(items)}</channel></rss>'


def item(path: str) -> str:
    return f'<item><title>{path}</title><enclosure url="{path}" type="audio/wav" length="1"/></item>'


def kept(folder: Path) -> list[str]:
    return sorted(url.partition("/")[2].partition("/")[2].partition("/")[2] for url in manifest.kept_urls(folder))


def refused(folder: Path) -> dict[str, str]:
    return {url.split("/", 3)[3]: reason for url, reason in manifest.rejected_urls(folder).items()}


def files(folder: Path) -> dict[str, str]:
    """What a crawl leaves, without times: names of all files, and the hash of the recordings."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.startswith(("audio/", "warc/", "work/")):
            found[name] = "" if name.startswith("warc") else hashlib.sha256(path.read_bytes()).hexdigest()
    for name in (manifest.KEPT_FILE, manifest.REJECTED_FILE):
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["source"].pop("fetched_at", None)
        found[name] = json.dumps(rows, sort_keys=True)
    return found


@pytest.fixture(scope="module")
def recordings(tone):
    """The demonstration's episodes as plain tones, so that no voice is needed."""
    return {name: tone(number) for number, name in enumerate(demo_site._EPISODES)}


def test_demo_site_gives_the_expected_result(serve, recordings, tmp_path):
    site = serve(demo_site.routes_of(recordings, private_url="http://10.0.0.1/inside.mp3"))
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(demo_site.seeds_of(site.server)))
    folder = tmp_path / "crawl"
    totals = run(load(tmp_path / "seeds.yaml"), folder)
    assert demo_site.compare(folder, site.server) == []
    assert totals.open == 0 and totals.recordings == 7 and totals.hours == pytest.approx(7 * 0.5 / 3600)
    assert "/private/hidden.wav" not in site.paths and "/audio/secret.mp3" not in site.paths
    assert all("test" not in visit.user_agent and "speechgpt2/" in visit.user_agent for visit in site.server.visits)

    audio = {path.stem: path for path in (folder / "audio").rglob("*.*")}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == name for name, path in audio.items())
    assert len(audio) == 7 and not list((folder / "work").iterdir())
    replaced = demo_site.encode(recordings["final"], "WAV")
    assert hashlib.sha256(replaced).hexdigest() in audio  # the new version, not two halves

    records = [Clip.from_json(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    said = {clip.source.url.rpartition("/")[2]: clip for clip in records}
    assert said["weather.mp3"].text.raw.startswith("Good morning.") and not said["weather.mp3"].text.lines
    [line] = said["kitchen.flac"].text.lines
    assert line.text == said["kitchen.flac"].text.raw and line.end == pytest.approx(0.1)
    assert said["kitchen.flac"].labels_from["text"].tool == "podcast:transcript"
    assert not said["travel.wav"].text.raw and "/gone.srt" in site.paths  # it could not be had
    warc = folder / "warc" / said["kitchen.flac"].id[:2] / f"{said['kitchen.flac'].id}.warc.gz"
    assert b"What are we cooking tonight?" in gzip.decompress(warc.read_bytes())

    before, asked = files(folder), len(site.paths)
    run(load(tmp_path / "seeds.yaml"), folder)
    assert files(folder) == before and len(site.paths) == asked  # nothing is asked for again

    take_down(said["kitchen.flac"].source.url, folder)
    left = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [name for name, data in left.items() if b"What are we cooking" in data] == []  # words go with the sound


def test_provenance_is_an_archive(serve, wav, tmp_path):
    feed = rss(item("/moved.wav"))
    site = serve(
        {
            "/feed": demo_site.text(feed, "text/xml"),
            "/moved.wav": demo_site.redirect("/a.wav"),
            "/a.wav": demo_site.data(wav(1), "audio/wav"),
        }
    )
    run(configure({"kind": "feed", "url": site.url("/feed")}), tmp_path)
    (record,) = [json.loads(line) for line in (tmp_path / manifest.KEPT_FILE).read_text().splitlines()]
    with next((tmp_path / "warc").rglob(f"{record['id']}.warc.gz")).open("rb") as file:
        rows = [
            (
                r.rec_type,
                r.rec_headers.get_header("WARC-Target-URI"),
                r.http_headers,
                r.raw_stream.read(),
                r.rec_headers,
            )
            for r in ArchiveIterator(file)
        ]
    assert [(kind, url) for kind, url, *_ in rows] == [
        ("response", site.url("/moved.wav")), ("request", site.url("/moved.wav")),
        ("response", site.url("/a.wav")), ("request", site.url("/a.wav")), ("metadata", site.url("/a.wav")),
    ]  # fmt: skip
    assert rows[0][2].get_header("Location") == "/a.wav" and "speechgpt2" in rows[1][2].get_header("User-Agent")
    digest = hashlib.sha256(wav(1)).hexdigest()
    assert rows[2][4].get_header("WARC-Payload-Digest") == f"sha256:{digest}"
    about = json.loads(rows[4][3])
    assert (about["sha256"], about["spdx"], about["licence_raw"]) == (digest, "CC-BY-4.0", BY)
    (archived,) = [
        record.raw_stream.read()
        for path in (tmp_path / "warc").rglob("*.gz")
        for record in ArchiveIterator(path.open("rb"))
        if record.rec_type == "response" and record.rec_headers.get_header("WARC-Target-URI") == site.url("/feed")
    ]
    assert archived.decode() == feed


def slow(body: bytes, seconds: float = 0.02, gate=None):
    """A recording that comes in four pieces, and can go on where it broke."""

    async def handler(request):
        start = request.http_range.start or 0
        status, place = (206, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}) if start else (200, {})
        headers = {
            "Content-Length": str(len(body) - start),
            "ETag": f'"{len(body)}"',
            "Content-Type": "audio/wav",
            **place,
        }
        response = demo_site.web.StreamResponse(status=status, headers=headers)
        if gate is not None:
            await gate(request)
        await response.prepare(request)
        step = (len(body) - start + 3) // 4 or 1
        for position in range(start, len(body), step):
            await response.write(body[position : position + step])
            await asyncio.sleep(seconds)
        return response

    return handler


def start(seeds: Path, folder: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        "from speechgpt2.cli import main; main()",
        "data",
        "crawl",
        str(seeds),
        "-o",
        str(folder),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def episodes(count: int, wav, **options):
    """A site of `count` recordings: a feed for half of them, pages for the rest, and a duplicate of each third."""
    names = [f"/{number}.wav" for number in range(count)]
    pages = {
        f"/page{n}": demo_site.text(f'<a href="/page{n + 1}">on</a><audio src="/{n}.wav">')
        for n in range(count // 2, count)
    }
    feed = rss(*map(item, names[: count // 2]), *(item(f"/copy{name[1:]}") for name in names[::3]))
    routes = {"/feed": demo_site.text(feed, "text/xml"), **pages}
    routes |= {name: slow(wav(number), **options) for number, name in enumerate(names)}
    routes |= {f"/copy{name[1:]}": slow(wav(number), **options) for number, name in enumerate(names) if number % 3 == 0}
    return routes


def seeds_for(site, count: int, path: Path, **changes) -> Path:
    seeds = [
        {"kind": "feed", "url": site.url("/feed")},
        {"kind": "page", "url": site.url(f"/page{count // 2}"), "depth": count, "licence": "CC0-1.0"},
    ]
    path.write_text(yaml.safe_dump({**FAST, **changes, "seeds": seeds}))
    return path


def test_killed_crawl_ends_like_an_uninterrupted_one(serve, wav, tmp_path):
    count, rng = 12, random.Random(1)
    site = serve(episodes(count, wav))
    seeds = seeds_for(site, count, tmp_path / "seeds.yaml", lease=1.0, workers=3, attempts=20)
    run(load(seeds), tmp_path / "whole")
    assert len(kept(tmp_path / "whole")) == count

    asked = len(site.paths)
    for kill in range(3):
        process = start(seeds, tmp_path / "killed")
        while len(site.paths) < asked + 3 * (kill + 1) and process.poll() is None:  # it is at work
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(seeds, tmp_path / "killed")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"{count} recordings" in out
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "work").iterdir())


def test_two_processes_on_one_folder_never_fetch_the_same_thing(serve, wav, tmp_path):
    both = asyncio.Event()
    agents: set[str] = set()

    async def gate(request):  # no recording comes until both processes ask for one
        agents.add(request.headers["User-Agent"])
        if len(agents) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 30)

    site = serve(episodes(12, wav, gate=gate))
    processes = []
    for name in ("one", "two"):
        seeds = seeds_for(site, 12, tmp_path / f"{name}.yaml", contact=name, workers=2, per_host=8)
        processes.append(start(seeds, tmp_path / "crawl"))
    for process in processes:
        err = process.communicate(timeout=90)[1]
        assert process.returncode == 0, err
    assert (
        len(site.paths) == len(set(site.paths)) == 12 + 4 + 1 + 7
    )  # recordings, copies, feed, pages (one leads nowhere)
    assert sum(visit.path == "/robots.txt" for visit in site.server.visits) == 1
    assert len(agents) == 2 and len(kept(tmp_path / "crawl")) == 12


def test_ctrl_c_stops_and_says_how_to_resume(serve, wav, tmp_path):
    site = serve(episodes(12, wav, seconds=0.3))
    seeds = seeds_for(site, 12, tmp_path / "seeds.yaml", workers=3)
    process = start(seeds, tmp_path / "crawl")
    while len(site.paths) < 6 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"to resume: sg2 data crawl {seeds} -o {tmp_path / 'crawl'}" in out
    totals = run(load(seeds), tmp_path / "crawl")  # at once: the leases were given back
    assert totals.open == 0 and totals.recordings == 12


def test_crawl_respects_the_delay_of_a_host(serve, wav, tmp_path):
    routes = episodes(6, wav)
    routes["/robots.txt"] = demo_site.text("User-agent: speechgpt2\nCrawl-delay: 0.15\n", "text/plain")
    at_once = most = 0

    async def gate(request):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.5)
        at_once -= 1

    site = serve({**routes, **{f"/{n}.wav": slow(wav(n), gate=gate) for n in range(6)}})
    run(configure({"kind": "feed", "url": site.url("/feed")}, workers=8, per_host=2), tmp_path)
    times = [visit.at for visit in site.server.visits]
    assert len(times) >= 6 and times[-1] - times[1] >= 0.15 * (len(times) - 2) * 0.9
    assert most == 2


def test_temporary_errors_are_retried(serve, wav, tmp_path):
    asked = 0

    async def moody(request):
        nonlocal asked
        asked += 1
        return demo_site.web.Response(status=503) if asked < 3 else await demo_site.data(wav(1), "audio/wav")(request)

    async def down(request):
        return demo_site.web.Response(status=500)

    site = serve(
        {
            "/feed": demo_site.text(rss(item("/moody.wav"), item("/down.wav")), "text/xml"),
            "/moody.wav": moody,
            "/down.wav": down,
        }
    )
    run(configure({"kind": "feed", "url": site.url("/feed")}, attempts=3), tmp_path)
    assert kept(tmp_path) == ["moody.wav"] and refused(tmp_path) == {"down.wav": "gave-up"}
    assert site.paths.count("/down.wav") == 3
    site.server._routes["/down.wav"] = demo_site.data(wav(2), "audio/wav")
    run(configure({"kind": "feed", "url": site.url("/feed")}, attempts=3), tmp_path, refresh=True)
    assert kept(tmp_path) == ["down.wav", "moody.wav"]


def test_robots_rules_apply_to_every_redirect(serve, wav, tmp_path):
    recording = demo_site.data(wav(1), "audio/wav")
    other = serve({"/robots.txt": demo_site.text("User-agent: *\nDisallow: /\n", "text/plain"), "/x.wav": recording})
    silent = serve({"/robots.txt": demo_site.redirect("/robots.txt"), "/y.wav": recording})

    async def broken(request):
        return demo_site.web.Response(status=503)

    down = serve({"/robots.txt": broken, "/z.wav": recording})
    feed = rss(item("/to-x.wav"), item(silent.url("/y.wav")), item(down.url("/z.wav")))
    site = serve({"/feed": demo_site.text(feed, "text/xml"), "/to-x.wav": demo_site.redirect(other.url("/x.wav"))})
    run(configure({"kind": "feed", "url": site.url("/feed")}, attempts=2), tmp_path)
    assert kept(tmp_path) == []
    assert refused(tmp_path) == {"to-x.wav": "robots", "y.wav": "redirect-loop", "z.wav": "gave-up"}
    assert other.paths == [] and silent.paths == [] and down.paths == []


def test_refresh_finds_new_items_with_conditional_requests(serve, wav, tmp_path):
    recordings = {f"/{n}.wav": demo_site.data(wav(n), "audio/wav") for n in range(3)}
    site = serve({"/feed": demo_site.text(rss(item("/0.wav")), "text/xml"), **recordings})
    config = configure({"kind": "feed", "url": site.url("/feed")})
    run(config, tmp_path)
    run(config, tmp_path, refresh=True)
    assert site.paths == ["/feed", "/0.wav", "/feed"]
    assert len(list((tmp_path / "warc").rglob("*.gz"))) == 2
    site.server._routes["/feed"] = demo_site.text(rss(item("/0.wav"), item("/1.wav")), "text/xml")
    run(config, tmp_path, refresh=True)
    assert kept(tmp_path) == ["0.wav", "1.wav"] and site.paths.count("/0.wav") == 1


def test_page_found_by_a_shorter_way_is_read_from_its_archive(serve, wav, tmp_path):
    pages = {
        "/far": demo_site.text('<a href="/near">near</a>'),
        "/near": demo_site.text('<a href="/deep">deep</a>'),
        "/deep": demo_site.text('<audio src="/a.wav">'),
    }
    site = serve({**pages, "/a.wav": demo_site.data(wav(1), "audio/wav")})
    page = {"kind": "page", "licence": "CC0-1.0"}
    run(configure({**page, "url": site.url("/far"), "depth": 1}), tmp_path)
    assert kept(tmp_path) == []
    run(configure({**page, "url": site.url("/near"), "depth": 1}), tmp_path)
    assert kept(tmp_path) == ["a.wav"] and site.paths.count("/near") == 1


@pytest.mark.parametrize("order", [("/good", "/bad"), ("/bad", "/good")])
def test_licence_does_not_depend_on_the_order_of_pages(serve, wav, tmp_path, order):
    """A recording is in a feed that frees it, on a page that says nothing, and another in a feed that does not."""
    free = rss(item("/a.wav"), item("/b.wav"))
    closed = rss(item("/b.wav"), channel="<copyright>All rights reserved</copyright>")
    routes = {
        "/good": demo_site.text(free, "text/xml"),
        "/bad": demo_site.text(closed, "text/xml"),
        "/page": demo_site.text('<audio src="/a.wav">'),
    }
    site = serve(
        {**routes, "/a.wav": demo_site.data(wav(1), "audio/wav"), "/b.wav": demo_site.data(wav(2), "audio/wav")}
    )
    run(configure({"kind": "page", "url": site.url("/page")}), tmp_path)
    assert refused(tmp_path) == {"a.wav": "licence"}
    for path in order:
        run(configure({"kind": "feed", "url": site.url(path)}), tmp_path)
    assert kept(tmp_path) == ["a.wav"] and refused(tmp_path) == {"b.wav": "licence"}
    assert len(list((tmp_path / "audio").rglob("*.wav"))) == 1


def test_changed_licences_apply_to_earlier_items(serve, wav, tmp_path):
    site = serve(
        {"/feed": demo_site.text(rss(item("/a.wav")), "text/xml"), "/a.wav": demo_site.data(wav(1), "audio/wav")}
    )
    seed = {"kind": "feed", "url": site.url("/feed")}
    for licences, outcome in ((["CC0-1.0"], []), (["CC-BY-4.0"], ["a.wav"]), (["CC0-1.0"], []), (["any"], ["a.wav"])):
        run(configure(seed, licences=licences), tmp_path)
        assert kept(tmp_path) == outcome and len(list((tmp_path / "audio").rglob("*.wav"))) == len(outcome)


def test_takedown_removes_everything_permanently(serve, wav, tmp_path):
    first = rss(item("/a.wav"), item("/b.wav"))
    second = rss(item("/c.wav"), item("/copy.wav"))
    routes = {
        "/first": demo_site.text(first, "text/xml"),
        "/second": demo_site.text(second, "text/xml"),
        "/to-a": demo_site.redirect("/a.wav"),
    }
    routes |= {
        f"/{name}.wav": demo_site.data(wav(n), "audio/wav") for name, n in (("a", 1), ("b", 2), ("c", 3), ("copy", 2))
    }
    site = serve(routes)
    config = configure(*({"kind": "feed", "url": site.url(path)} for path in ("/first", "/second")))
    run(config, tmp_path)
    assert kept(tmp_path) == ["a.wav", "b.wav", "c.wav"]
    removed = take_down(site.url("/first"), tmp_path)
    assert sorted(item.url for item in removed) == sorted(map(site.url, ("/first", "/a.wav", "/b.wav", "/copy.wav")))
    assert kept(tmp_path) == ["c.wav"] and len(list((tmp_path / "audio").rglob("*.*"))) == 1
    assert len(list((tmp_path / "warc").rglob("*.gz"))) == 2
    content = (tmp_path / "frontier.db").read_bytes() + b"".join(p.read_bytes() for p in tmp_path.glob("*.jsonl"))
    assert BY.encode() not in content or b"/second" in content

    asked = len(site.paths)
    back = {"kind": "media", "licence": "CC0-1.0"}
    again = [{**back, "url": site.url(path)} for path in ("/a.wav", "/copy.wav", "/to-a")]
    site.server._routes["/new.wav"] = demo_site.data(wav(1), "audio/wav")
    again.append({**back, "url": site.url("/new.wav")})  # a new address of what was taken down
    run(configure(*again, {"kind": "feed", "url": site.url("/first")}), tmp_path, refresh=True)
    assert kept(tmp_path) == ["c.wav"]
    assert {"/first", "/a.wav", "/copy.wav"}.isdisjoint(site.paths[asked:]) and "/to-a" in site.paths[asked:]
    assert refused(tmp_path)["new.wav"] == refused(tmp_path)["to-a"] == "taken-down"


def test_takedown_during_the_crawl(serve, wav, tmp_path):
    begun, taken = threading.Event(), threading.Event()

    async def gate(request):
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, taken.wait, 10)

    site = serve({"/a.wav": slow(wav(1), gate=gate)})

    def take():
        begun.wait(10)
        take_down(site.url("/a.wav"), tmp_path)
        taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    run(configure({"kind": "media", "url": site.url("/a.wav"), "licence": "CC0-1.0"}), tmp_path)
    thread.join()
    assert kept(tmp_path) == [] and refused(tmp_path) == {"a.wav": "taken-down"}
    assert not list((tmp_path / "audio").rglob("*.*")) and not list((tmp_path / "work").iterdir())


def test_folders(wav, tmp_path):
    source = tmp_path / "recordings" / "深"
    source.mkdir(parents=True)
    (source / "一 .wav").write_bytes(wav(1))
    (source / "copy.WAV").write_bytes(wav(1))
    (source / "broken.wav").write_bytes(wav(2)[:30])
    (source / "notes.txt").write_text("no sound")
    (source / ".hidden").mkdir()
    (source / ".hidden" / "x.wav").write_bytes(wav(3))
    (tmp_path / "outside.wav").write_bytes(wav(4))
    (source / "link.wav").symlink_to(tmp_path / "outside.wav")
    os.mkfifo(source / "pipe.wav")
    (tmp_path / "seeds.yaml").write_text(
        yaml.safe_dump({**FAST, "seeds": [{"kind": "folder", "url": "recordings", "licence": "CC0-1.0"}]})
    )
    folder = tmp_path / "crawl"
    run(load(tmp_path / "seeds.yaml"), folder)
    reasons = {url.rpartition("/")[2]: reason for url, reason in manifest.rejected_urls(folder).items()}
    assert len(manifest.kept_urls(folder)) == 1
    assert reasons == {"copy.WAV": "duplicate", "broken.wav": "not-audio", "pipe.wav": "type"} or reasons == {
        "%E4%B8%80%20.wav": "duplicate", "broken.wav": "not-audio", "pipe.wav": "type",
    }  # fmt: skip
    take_down(str(tmp_path / "recordings"), folder)
    assert manifest.kept_urls(folder) == [] and (source / "一 .wav").exists()  # the originals are not ours to remove


class Extractor:
    """A video site with the interface of `videos.YtDlp`."""

    def __init__(self, wav):
        self.wav, self.fetched = wav, []

    def list(self, url):
        return [Video(f"{url}/{n}", f"Talk {n}", "", "") for n in range(2)]

    def download(self, url, to, accept):
        video = Video(
            url, "Talk", "en", "Creative Commons Attribution license (reuse allowed)" if url.endswith("0") else ""
        )
        if reason := accept(video):
            raise no_licence(reason)
        self.fetched.append(url)
        to.write_bytes(self.wav(1))
        return video


def no_licence(reason):
    from speechgpt2.data.crawl.item_errors import ItemRejected

    return ItemRejected("licence", reason)


def test_videos_by_their_own_licence(serve, wav, tmp_path):
    site = serve({})
    extractor = Extractor(wav)
    run(configure({"kind": "videos", "url": site.url("/channel")}), tmp_path, extractor=extractor)
    assert kept(tmp_path) == ["channel/0"] and refused(tmp_path) == {"channel/1": "licence"}
    assert extractor.fetched == [site.url("/channel/0")]
    (record,) = [json.loads(line) for line in (tmp_path / manifest.KEPT_FILE).read_text().splitlines()]
    assert record["source"]["spdx"] == "CC-BY-3.0"


def test_dry_run_keeps_nothing(serve, recordings, tmp_path, capsys):
    from speechgpt2.cli.data.crawl import crawl

    site = serve(demo_site.routes_of(recordings, private_url="http://10.0.0.1/"))
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(demo_site.seeds_of(site.server)))
    crawl(tmp_path / "seeds.yaml", tmp_path / "crawl", dry_run=True)
    said = capsys.readouterr().out
    assert "would fetch 16 recordings" in said and "'licence': 1" in said and "'robots': 1" in said
    assert not (tmp_path / "crawl").exists()
    assert {path for path in site.paths if "." in path and not path.endswith((".xml", ".html"))} == set()


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"seeds": []}, "contact"),
        ({"contact": " ", "seeds": []}, "contact is empty"),
        ({"contact": "x", "seeds": [{"kind": "feed", "url": "ftp://x/"}]}, "only http and https"),
        ({"contact": "x", "seeds": [{"kind": "feeds", "url": "http://x/"}]}, "expected one of feed"),
        ({"contact": "x", "seeds": [{"kind": "folder", "url": "nowhere"}]}, "no such folder"),
        ({"contact": "x", "seeds": [], "fetch": {"allow_networks": ["home"]}}, "not a network"),
        ({"contact": "x", "seeds": [], "workers": 0}, "must be positive"),
        ([], "expected a mapping"),
    ],
)
def test_seed_mistakes_are_user_errors(tmp_path, values, complaint):
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=complaint):
        run(load(tmp_path / "seeds.yaml"), tmp_path / "crawl")


def test_random_bytes_never_end_the_crawl(serve, tmp_path):
    """Random bytes as feeds, sitemaps, pages and recordings: each is rejected, none ends the run."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, 3000, dtype=np.uint8).tobytes() for _ in range(8)]
    heads = [
        b"",
        b"<rss version='2.0'><channel><item>",
        b"<urlset>",
        b"\x1f\x8b",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"fLaC",
        b"OggS\0",
        b"ID3\4",
    ]
    routes = {f"/{n}": demo_site.data(head + body, "") for n, (head, body) in enumerate(zip(heads, noise))}
    site = serve(routes)
    kinds = ("feed", "sitemap", "page", "media")
    seeds = [
        {"kind": kind, "url": site.url(f"/{n}") + f"?{kind}", "licence": "CC0-1.0"} for kind in kinds for n in range(8)
    ]
    totals = run(configure(*seeds), tmp_path)
    assert totals.open == 0 and totals.recordings == 0
    assert totals.documents + sum(totals.rejected.values()) >= len(seeds)
