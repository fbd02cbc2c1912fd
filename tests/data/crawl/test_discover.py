"""Feeds, sitemaps and pages, friendly and hostile."""

import gzip
import time
from contextlib import suppress

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl.discover import DocumentSource, decode, links_of
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.licence import CHANNEL, ITEM, SEED, Statement

HERE = "http://example.org/show/feed.xml"
NAMESPACES = (
    'xmlns:podcast="https://podcastindex.org/namespace/1.0" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:creativeCommons="http://backend.userland.com/creativeCommonsRssModule"'
)
BY = "https://creativecommons.org/licenses/by/4.0/"


def rss(items: str, channel: str = "", encoding: str = "UTF-8") -> str:
    head = f'<?xml version="1.0" encoding="{encoding}"?><rss version="2.0" {NAMESPACES}>'
    return f"{head}<channel><title>Show</title>{channel}{items}</channel></rss>"


def item(url: str, extra: str = "", kind: str = "audio/mpeg") -> str:
    return f'<item><title>Episode</title><enclosure url="{url}" type="{kind}" length="1"/>{extra}</item>'


def feed(text: str, source: DocumentSource | None = None) -> dict[str, Statement]:
    links = links_of("feed", text.encode(), "application/rss+xml", source or DocumentSource(HERE))
    return {link.url: Statement(link.facts.get("licence", ""), link.facts.get("level", 0)) for link in links}


def test_time_to_read_repeated_licences_is_linear():
    """A feed of one megabyte held a crawl for more than ten minutes."""
    text = rss(item("a.mp3") + '<podcast:license url="' * 50_000)
    began = time.process_time()
    with suppress(ItemRejected):
        feed(text)
    assert time.process_time() - began < 5


def test_enclosures_with_the_nearest_licence():
    text = rss(
        item("a.mp3")
        + item("b.mp3", "<podcast:license>cc0-1.0</podcast:license>")
        + item("c.mp3", f'<podcast:license url="{BY}">cc-by-4.0</podcast:license>')
        + item("d.mp3", "<dc:rights>All rights reserved</dc:rights>")
        + item(
            "e.mp3", "<creativeCommons:license>http://creativecommons.org/licenses/by-nc/4.0/</creativeCommons:license>"
        ),
        f"<copyright>© 2024 Them</copyright><creativeCommons:license>{BY}</creativeCommons:license>",
    )
    found = feed(text)
    assert found["http://example.org/show/a.mp3"] == Statement(f"{BY} | © 2024 Them", CHANNEL)
    assert found["http://example.org/show/b.mp3"].spdx == "CC0-1.0"
    assert found["http://example.org/show/c.mp3"].spdx == "CC-BY-4.0"
    assert found["http://example.org/show/d.mp3"] == Statement("All rights reserved", ITEM)
    assert found["http://example.org/show/e.mp3"].spdx == "CC-BY-NC-4.0"


def test_bare_copyright_does_not_override_the_seed():
    seed = Statement("CC-BY-4.0", SEED)
    assert feed(rss(item("a.mp3"), "<copyright>© 2024 Them</copyright>"), DocumentSource(HERE, 0, seed)) == {
        "http://example.org/show/a.mp3": seed
    }
    reserved = feed(rss(item("a.mp3"), "<copyright>All rights reserved</copyright>"), DocumentSource(HERE, 0, seed))
    assert reserved["http://example.org/show/a.mp3"].spdx is None


def test_atom():
    text = (
        '<feed xmlns="http://www.w3.org/2005/Atom" xml:lang="zh"><title>集</title><entry><title>一</title>'
        f'<link rel="license" href="{BY}"/><link rel="enclosure" type="audio/ogg" href="/一.ogg"/></entry></feed>'
    )
    (link,) = links_of("feed", text.encode(), "application/atom+xml", DocumentSource(HERE))
    assert link.url == "http://example.org/%E4%B8%80.ogg" and link.facts["title"] == "一"
    assert Statement(link.facts["licence"]).spdx == "CC-BY-4.0"


def test_enclosures_without_audio_are_skipped():
    bad = ["file:///etc/passwd", "javascript:alert(1)", "http://name:word@example.org/a.mp3", "http://exa mple/a.mp3"]
    text = rss("".join(map(item, bad)) + item("cover.jpg", kind="image/jpeg") + item("../../../etc/passwd"))
    assert list(feed(text)) == ["http://example.org/etc/passwd"]


BOMB = '<!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><rss version="2.0"><channel>&b;</channel></rss>'


@pytest.mark.parametrize("kind", ["feed", "sitemap"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_entities_are_refused_in_any_encoding(kind, encoding):
    with pytest.raises(ItemRejected) as rejection:
        links_of(kind, BOMB.encode(encoding), "text/xml", DocumentSource(HERE))
    assert rejection.value.reason == "entities"


def test_text_that_is_not_utf8():
    latin = rss(item("a.mp3").replace("Episode", "Épisode"), encoding="ISO-8859-1").encode("latin-1")
    chinese = rss(item("b.mp3").replace("Episode", "第一集"), encoding="GBK").encode("gbk")
    broken = rss(item("c.mp3")).encode().replace(b"Episode", b"\xff\xfe\xfa")
    titles = [
        links_of("feed", body, "text/xml", DocumentSource(HERE))[0].facts["title"] for body in (latin, chinese, broken)
    ]
    assert titles == ["Épisode", "第一集", "\N{REPLACEMENT CHARACTER}" * 3]


@pytest.mark.parametrize("name", ["punycode", "unicode_escape", "rot13", "no-such", "idna", "utf-7\udc80"])
def test_strange_encodings_do_no_harm(name):
    assert decode(b"<p>plain", f"text/html; charset={name}") == "<p>plain"


@pytest.mark.parametrize("body", [b"", b"\0\1\2", b"<html><body>no feed", b'{"a": 1}', b"<rss"])
def test_invalid_feed_is_rejected(body):
    with pytest.raises(ItemRejected):
        links_of("feed", body, "text/xml", DocumentSource(HERE))


def urlset(*locations: str, name: str = "urlset") -> bytes:
    inner = "".join(f"<url><loc>{location}</loc></url>" for location in locations)
    return f'<?xml version="1.0"?><{name} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{inner}</{name}>'.encode()


def test_sitemaps_plain_zipped_and_nested():
    pages = urlset("http://example.org/a.html", "http://example.org/b.MP3", "ftp://example.org/c")
    for body in (pages, gzip.compress(pages)):
        links = links_of("sitemap", body, "application/xml", DocumentSource("http://example.org/sitemap.xml"))
        assert [(link.url, link.kind) for link in links] == [
            ("http://example.org/a.html", "page"),
            ("http://example.org/b.MP3", "media"),
        ]
    index = urlset("http://example.org/more.xml", name="sitemapindex")
    (nested,) = links_of("sitemap", index, "", DocumentSource("http://example.org/sitemap.xml", depth=1))
    assert (nested.kind, nested.depth) == ("sitemap", 0)
    assert links_of("sitemap", index, "", DocumentSource("http://example.org/sitemap.xml", depth=0)) == []


def test_hostile_sitemaps():
    for body, reason in [
        (gzip.compress(bytes(60_000_000)), "too-large"),
        (gzip.compress(urlset())[:20], "corrupt"),
        (b"<html/>", "not-a-sitemap"),
        (b"<urlset><url>", "not-a-sitemap"),
        (urlset(*(f"http://example.org/{i}" for i in range(50_001))), "too-large"),
    ]:
        with pytest.raises(ItemRejected) as rejection:
            links_of("sitemap", body, "", DocumentSource(HERE))
        assert rejection.value.reason == reason


PAGE = """<!doctype html><html lang=en><base href="/deep/"><title> A
page </title><link rel=alternate type="application/rss+xml" href=/feed.xml>
<a href="one.html">1</a><a href="http://elsewhere.example/">2</a><a href="talk.mp3?x=1">3</a><a href=mailto:a@b>4</a>
<a rel=nofollow href=no.html>5</a><audio><source src="//cdn.example/x"></audio><a rel=license href="{by}">CC</a>"""


def test_pages():
    links = links_of(
        "page", PAGE.format(by=BY).encode(), "text/html; charset=utf-8", DocumentSource("http://example.org/", 1)
    )
    assert {link.url: (link.kind, link.depth) for link in links} == {
        "http://example.org/feed.xml": ("feed", 0),
        "http://example.org/deep/one.html": ("page", 0),
        "http://example.org/deep/talk.mp3?x=1": ("media", 0),
        "http://cdn.example/x": ("media", 0),
    }
    facts = next(link.facts for link in links if link.kind == "media")
    assert facts == {"licence": BY, "level": CHANNEL, "title": "A page", "language": "en"}


def test_pages_respect_depth_and_type():
    links = links_of("page", PAGE.format(by=BY).encode(), "text/html", DocumentSource("http://example.org/", 0))
    assert [link.url for link in links if link.kind == "page"] == []
    with pytest.raises(ItemRejected, match="is not HTML"):
        links_of("page", b"\x89PNG", "image/png", DocumentSource("http://example.org/"))
