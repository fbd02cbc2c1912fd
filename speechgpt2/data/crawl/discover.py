"""Links in feeds, sitemaps and pages, each with the statements about its licence."""

from __future__ import annotations

import gzip
import io
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import feedparser

from speechgpt2.data.crawl import licence, transcript, urls
from speechgpt2.data.crawl.frontier_reader import Link
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.licence import Statement

MAX_LINKS = 50_000  # of one document: the limit that the sitemap standard sets
MAX_UNPACKED = 50_000_000  # bytes of a sitemap that is a .gz file
MAX_TITLE = 300
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "application/octet-stream", "")
_ENTITY = re.compile(r"<!\s*(ENTITY|ELEMENT|ATTLIST|NOTATION)", re.I)
_PODCAST_LICENCE = re.compile(
    r"<podcast:license\s[^<>]{0,300}?url\s{0,9}=\s{0,9}[\"']([^\"'<>]{0,300})[\"'][^<>]{0,300}>([^<]{0,300})"
    r"</podcast:license>",  # bounded, so that the time grows with the document and not with its square
    re.I,
)
_TRANSCRIPT = re.compile(r"<(/?)podcast:transcript\b", re.I)
_ENCODINGS = re.compile(r"(utf|iso-8859|windows-|cp\d|gb|hz|big5|shift|sjis|euc|koi8|latin|us-ascii|ascii|mac)", re.I)
_CHARSET = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.I)


@dataclass(frozen=True)
class DocumentSource:
    """The document whose links are read.

    Attributes:
        url: its address.
        depth: how many further pages may be followed.
        licence: the statement about its licence, which its links inherit.
        language: its language, "" if unknown.
    """

    url: str
    depth: int = 0
    licence: Statement = field(default_factory=Statement)
    language: str = ""


def links_of(kind: str, body: bytes, content_type: str, source: DocumentSource) -> list[Link]:
    """Return the links of a document, without duplicates.

    Raises `ItemRejected` if the document has another kind or is hostile.
    """
    read = {"feed": read_feed, "sitemap": read_sitemap, "page": read_page}[kind]
    links: dict[str, Link] = {}
    for link in read(body, content_type, source):
        earlier = links.get(link.url)
        if earlier is None or (earlier.kind == "page" and link.kind != "page"):
            links[link.url] = link
        if len(links) > MAX_LINKS:
            raise ItemRejected("too-large", f"more than {MAX_LINKS} links")
    return list(links.values())


def read_feed(body: bytes, content_type: str, source: DocumentSource) -> Iterator[Link]:
    """Read RSS and Atom: enclosures with the title, language and licence of the episode, else of the channel."""
    text = decode(body, content_type)
    _refuse_declarations(text)
    # feedparser keeps either the text or the URL of this tag. So the URL is added to the text.
    text = _PODCAST_LICENCE.sub(r"<podcast:license>\2 \1</podcast:license>", text)
    # feedparser keeps only the last of several equal tags, but all enclosures with their attributes.
    text = _TRANSCRIPT.sub(lambda tag: "</enclosure" if tag[1] else '<enclosure transcript="yes"', text)
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)  # its encoding no longer applies
    headers = {"content-type": "application/xml; charset=utf-8"}
    data = text.encode("utf-8", "replace")
    feed = feedparser.parse(data, response_headers=headers, sanitize_html=False, resolve_relative_uris=False)
    if not feed.get("version"):
        raise ItemRejected("not-a-feed", "is neither RSS nor Atom")
    channel = _feed_licence(feed.feed, licence.CHANNEL) or source.licence
    language = str(feed.feed.get("language", "")) or source.language
    for entry in feed.entries:
        stated = _feed_licence(entry, licence.ITEM) or channel
        facts = _facts(stated, title=entry.get("title", ""), language=language, transcript=_transcript(entry, source))
        for link in entry.get("links", ()):
            if link.get("rel") != "enclosure" or link.get("transcript"):
                continue
            if _may_be_audio(link.get("type", ""), link.get("href", "")):
                yield from _link(link.get("href", ""), source, "media", facts)


def _transcript(entry: Any, source: DocumentSource) -> list[str]:
    """Return URL and type of the best transcript that an episode names, or an empty list."""
    candidates = []
    for link in entry.get("links", ()):
        declared = link.get("type", "").partition(";")[0].strip().lower()
        if link.get("transcript") and declared in transcript.TYPES:
            urls_found = _link(link.get("href", ""), source, "", {})
            candidates += [(transcript.TYPES.index(declared), found.url) for found in urls_found]
    if not candidates:
        return []
    rank, url = min(candidates)
    return [url, transcript.TYPES[rank]]


def _feed_licence(node: Any, level: int) -> Statement | None:
    """Return what an episode or a channel says: its licence tags, or its copyright notice."""
    tags = [str(node["podcast_license"])] if isinstance(node.get("podcast_license"), str) else []
    tags += [str(link.get("href", "")) for link in node.get("links", ()) if link.get("rel") == "license"]
    notice = " ".join(str(node.get("rights", "")).split())
    words = " | ".join(part.strip() for part in (*tags, notice) if part.strip())
    if any(tag.strip() for tag in tags):
        return Statement(words, level)
    return Statement(words, level) if licence.is_statement(notice) else None


def read_sitemap(body: bytes, content_type: str, source: DocumentSource) -> Iterator[Link]:
    """Read sitemaps and their indexes, plain or gzipped: pages, recordings, and further sitemaps."""
    if body[:2] == b"\x1f\x8b":
        body = _gunzip(body)
    text = decode(body, content_type)
    _refuse_declarations(text)
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    facts = _facts(source.licence, language=source.language)
    is_index, has_root = False, False
    try:
        for event, node in ElementTree.iterparse(io.BytesIO(text.encode("utf-8", "replace")), events=("start", "end")):
            name = node.tag.rpartition("}")[2]
            if event == "start":
                if not has_root and name not in ("urlset", "sitemapindex"):
                    raise ItemRejected("not-a-sitemap", f"contains <{name[:40]}>")
                has_root, is_index = True, is_index or name == "sitemapindex"
                continue
            if name == "loc" and node.text:
                if not is_index:
                    kind = "media" if urls.looks_like_audio(node.text.strip()) else "page"
                    yield from _link(node.text, source, kind, facts)
                elif source.depth > 0:
                    yield from _link(node.text, source, "sitemap", facts, source.depth - 1)
            elif name in ("url", "sitemap"):
                node.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise ItemRejected("not-a-sitemap", f"is not XML ({error})") from None


def read_page(body: bytes, content_type: str, source: DocumentSource) -> Iterator[Link]:
    """Read HTML: recordings and feeds on any host, and pages of the same host while `depth` allows."""
    if content_type.partition(";")[0].strip().lower() not in PAGE_TYPES:
        raise ItemRejected("type", f"{content_type[:80]} is not HTML")
    reader = _Page()
    reader.feed(decode(body, content_type))
    reader.close()
    stated = Statement(" | ".join(sorted(reader.licences)), licence.CHANNEL) if reader.licences else source.licence
    facts = _facts(stated, title=" ".join("".join(reader.title).split()), language=reader.language or source.language)
    base = source.url
    for link in _link(reader.base, source, "page", {}) if reader.base else ():
        base = link.url
    own_host = urls.host_of(source.url)
    for href, kind in reader.links:
        for link in _link(href, source, kind, facts, base=base):
            if link.kind == "page" and urls.looks_like_audio(link.url):
                yield Link(link.url, "media", 0, facts)
            elif link.kind != "page":
                yield link
            elif source.depth > 0 and urls.host_of(link.url) == own_host:
                yield Link(link.url, "page", source.depth - 1, _facts(source.licence, language=source.language))


class _Page(HTMLParser):
    """Collects (href, kind) pairs, the licence links, title, language and base of a page."""

    FEEDS = ("application/rss+xml", "application/atom+xml")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[tuple[str, str]] = []
        self.licences: set[str] = set()
        self.title: list[str] = []
        self.language = self.base = ""
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        rel = values.get("rel", "").lower().split()
        href = values.get("href", "") or values.get("src", "")
        self._in_title = tag == "title"
        if tag == "html":
            self.language = values.get("lang", "")
        elif tag == "base" and not self.base:
            self.base = href
        elif tag in ("a", "link") and "license" in rel:
            self.licences.add(href)
        elif tag == "link" and "alternate" in rel and values.get("type", "").lower() in self.FEEDS:
            self.links.append((href, "feed"))
        elif tag in ("audio", "video", "source") and href:
            self.links.append((href, "media"))
        elif tag == "a" and href and "nofollow" not in rel:
            self.links.append((href, "page"))

    def handle_endtag(self, tag: str) -> None:
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)


def decode(body: bytes, content_type: str) -> str:
    """Decode by the byte-order mark, the declared encoding, or UTF-8; invalid bytes become U+FFFD."""
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            return body.decode(name, "replace")
    for start, name in ((b"<\x00", "utf-16-le"), (b"\x00<", "utf-16-be")):
        if body.startswith(start):
            return body.decode(name, "replace")
    declared = _CHARSET.search(content_type.encode("utf-8", "replace")) or _CHARSET.search(body[:1024])
    name = declared[1].decode("ascii", "replace") if declared else "utf-8"
    if not _ENCODINGS.match(name):  # Python has more encodings, some of them slow
        name = "utf-8"
    try:
        return body.decode(name, "replace")
    except (LookupError, UnicodeError):  # unknown, or not an encoding of text
        return body.decode("utf-8", "replace")


def _refuse_declarations(text: str) -> None:
    """Reject declared entities: they can expand to gigabytes, and feeds and sitemaps need none."""
    if _ENTITY.search(text):
        raise ItemRejected("entities", "declares XML entities")


def _gunzip(body: bytes) -> bytes:
    try:
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(body)).read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ItemRejected("corrupt", f"its gzip data is damaged ({error})") from None
    if len(unpacked) > MAX_UNPACKED:
        raise ItemRejected("too-large", f"unpacks to more than {MAX_UNPACKED / 1e6:g} MB")
    return unpacked


def _may_be_audio(declared: str, url: str) -> bool:
    return (
        declared.lower().startswith(("audio/", "video/"))
        or not declared
        or url.partition("?")[0].lower().endswith(urls.AUDIO_ENDINGS)
    )


def _link(
    href: str, source: DocumentSource, kind: str, facts: dict[str, Any], depth: int = 0, base: str = ""
) -> Iterable[Link]:
    """Yield the link if its URL may be fetched."""
    try:
        return (Link(urls.normalise(href, base or source.url), kind, depth, facts),)
    except ItemRejected:
        return ()


def _facts(stated: Statement, title: str = "", language: str = "", transcript: Sequence[str] = ()) -> dict[str, Any]:
    facts = {
        "licence": stated.raw, "level": stated.level, "title": title[:MAX_TITLE], "language": language[:35],
        "transcript": transcript,
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value}
