"""Normalised URLs, and which URLs may be fetched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from urllib.request import url2pathname

from yarl import URL

from speechgpt2.data.crawl.item_errors import ItemRejected

MAX_LENGTH = 2048
AUDIO_ENDINGS = (".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".mp4", ".webm", ".aiff")


def normalise(url: str, base: str = "") -> str:
    """Normalise an http(s) URL: host in lower case and ASCII, no fragment, no default port, no dot segments.

    Raises:
        ItemRejected: ("bad-url") another scheme, credentials in the URL, no host, too long, or no URL.
    """
    try:
        absolute = urljoin(base, url.strip())
        parsed = URL(absolute).with_fragment(None)
        if parsed.raw_path in ("", "/"):  # the only path with two spellings
            parsed = parsed.with_path("/", keep_query=True)
        host, text = parsed.raw_host, str(parsed)
    except ValueError as error:
        raise ItemRejected("bad-url", f"{url[:200]!r} is not a URL ({error})") from None
    if parsed.scheme not in ("http", "https"):
        raise ItemRejected("bad-url", f"{absolute[:200]!r}: only http and https are fetched")
    if not host or any(c.isspace() or c in "\\%" for c in host):
        raise ItemRejected("bad-url", f"{absolute[:200]!r} has no host")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise ItemRejected("bad-url", f"{host}: URLs with a user name or password are not fetched")
    if len(text) > MAX_LENGTH:
        raise ItemRejected("bad-url", f"{text[:80]}…: {len(text)} characters, the limit is {MAX_LENGTH}")
    return text


def of_file(path: Path) -> str:
    """Return the `file:` URL of a local file, by its real path."""
    return path.resolve().as_uri()


def to_file(url: str) -> Path:
    """Return the path of a `file:` URL."""
    path = urlsplit(url).path
    return Path(url2pathname(path) if os.name == "nt" else os.fsdecode(unquote_to_bytes(path)))


def host_of(url: str) -> str:
    """Return host and port, the unit of rate limits; "" for local files."""
    return URL(url, encoded=True).raw_authority or "" if url.startswith("http") else ""


def origin_of(url: str) -> str:
    """Return scheme, host and port: what one robots.txt applies to."""
    return str(URL(url, encoded=True).origin())


def item_id(url: str) -> str:
    """Return a short, stable and unique name that is safe as a file name."""
    return hashlib.sha256(url.encode()).hexdigest()[:20]


def looks_like_audio(url: str) -> bool:
    """Whether the path ends like an audio file's."""
    return URL(url, encoded=True).raw_path.lower().endswith(AUDIO_ENDINGS)
