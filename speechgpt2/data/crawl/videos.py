"""Video sites through yt-dlp, where it is installed (``speechgpt2[video]``): it lists channels and fetches the sound.

yt-dlp makes its own connections: robots.txt, takedowns, pace and the address guard are applied to the page it is sent
to, not to what it opens from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from speechgpt2.data.crawl.verdicts import Rejected, TryLater
from speechgpt2.errors import UserError

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # yt-dlp would print what we raise


class Video(NamedTuple):
    """What a site says of a video; `licence` is "" where it says nothing."""

    url: str
    title: str
    language: str
    licence: str


class Extractor(Protocol):
    """What the crawler needs of a video site. Both raise `Rejected` or `TryLater`."""

    def list(self, url: str) -> list[Video]:
        """The videos of a channel or playlist; a single video lists itself."""

    def download(self, url: str, to: Path, accept: Callable[[Video], str | None]) -> Video:
        """Fetch the sound of a video into the file `to`, unless `accept` gives a reason against it."""


class YtDlp:
    """An `Extractor`. Errors: `UserError` if yt-dlp is not installed."""

    def __init__(self, user_agent: str, delay: float, max_bytes: int):
        try:
            import yt_dlp
        except ImportError:
            raise UserError("video seeds need yt-dlp: pip install 'speechgpt2[video]'") from None
        self._library = yt_dlp
        self._options = {
            "quiet": True, "no_warnings": True, "noprogress": True, "cachedir": False, "ignoreerrors": False,
            "http_headers": {"User-Agent": user_agent}, "sleep_interval_requests": delay, "max_filesize": max_bytes,
            "socket_timeout": 60, "logger": _LOG,
        }  # fmt: skip

    def list(self, url: str) -> list[Video]:
        info = self._extract({"extract_flat": "in_playlist", "skip_download": True}, url, download=False)
        entries = info.get("entries")
        return [_video(entry, url) for entry in ([info] if entries is None else entries) if entry]

    def download(self, url: str, to: Path, accept: Callable[[Video], str | None]) -> Video:
        refusals: list[str] = []

        def decide(info: dict[str, Any], *, incomplete: bool = False) -> str | None:
            reason = None if incomplete else accept(_video(info, url))
            refusals.extend([reason] if reason else [])
            return reason

        options = {
            "format": "bestaudio/best", "noplaylist": True, "match_filter": decide, "overwrites": True,
            "outtmpl": {"default": str(to).replace("%", "%%")},
        }  # fmt: skip
        info = self._extract(options, url, download=True)
        if refusals:
            raise Rejected("licence", refusals[0])
        if not to.exists():
            raise Rejected("too-large", "yt-dlp left it out: no sound within the limits")
        return _video(info, url)

    def _extract(self, options: dict[str, Any], url: str, download: bool) -> dict[str, Any]:
        try:
            with self._library.YoutubeDL({**self._options, **options}) as session:
                return session.extract_info(url, download=download) or {}
        except self._library.utils.DownloadError as error:
            raise TryLater(f"yt-dlp: {str(error)[:200]}") from None


def _video(info: dict[str, Any], url: str) -> Video:
    page = info.get("webpage_url") or info.get("url") or url
    return Video(page, info.get("title") or "", info.get("language") or "", info.get("license") or "")
