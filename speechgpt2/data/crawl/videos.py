"""Video sites through yt-dlp, if it is installed (`speechgpt2[video]`): list channels, fetch the audio."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater
from speechgpt2.errors import UserError

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # yt-dlp would print errors that are raised anyway


class Video(NamedTuple):
    """A video, as its site describes it; `licence` is "" if the site states none."""

    url: str
    title: str
    language: str
    licence: str


class Extractor(Protocol):
    """The interface of video sites. Both methods raise `ItemRejected` or `RetryLater`."""

    def list(self, url: str) -> list[Video]:
        """List the videos of a channel or playlist; a single video lists itself."""

    def download(self, url: str, to: Path, accept: Callable[[Video], str | None]) -> Video:
        """Fetch the audio of a video into the file `to`, unless `accept` returns a reason against it."""


class YtDlp:
    """An `Extractor` by yt-dlp. Raises `UserError` if yt-dlp is not installed."""

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
        """List the videos of a channel or playlist."""
        info = self._extract({"extract_flat": "in_playlist", "skip_download": True}, url, download=False)
        entries = info.get("entries")
        return [_video(entry, url) for entry in ([info] if entries is None else entries) if entry]

    def download(self, url: str, to: Path, accept: Callable[[Video], str | None]) -> Video:
        """Fetch the audio of a video."""
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
            raise ItemRejected("licence", refusals[0])
        if not to.exists():
            raise ItemRejected("too-large", "yt-dlp skipped it: no audio within the limits")
        return _video(info, url)

    def _extract(self, options: dict[str, Any], url: str, download: bool) -> dict[str, Any]:
        try:
            with self._library.YoutubeDL({**self._options, **options}) as session:
                return session.extract_info(url, download=download) or {}
        except self._library.utils.DownloadError as error:
            raise RetryLater(f"yt-dlp: {str(error)[:200]}") from None


def _video(info: dict[str, Any], url: str) -> Video:
    page = info.get("webpage_url") or info.get("url") or url
    return Video(page, info.get("title") or "", info.get("language") or "", info.get("license") or "")
