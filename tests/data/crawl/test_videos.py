"""The adapter of yt-dlp, against a library of the same interface."""

import sys
from types import SimpleNamespace

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl.item_errors import ItemRejected, RetryLater
from speechgpt2.data.crawl.videos import YtDlp
from speechgpt2.errors import UserError

TALK = {"webpage_url": "https://v.example/1", "title": "Talk", "language": "en", "license": "CC BY 4.0"}
CHANNEL = {
    "_type": "playlist",
    "entries": [{"url": "https://v.example/1", "title": "Talk"}, None, {"url": "https://v.example/2"}],
}

SEEN: list[dict] = []  # the options of every session


class DownloadError(Exception):
    """As yt_dlp.utils.DownloadError."""


class YoutubeDL:
    """As yt_dlp.YoutubeDL, as far as the adapter uses it."""

    def __init__(self, params):
        self.params = params
        SEEN.append(params)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def extract_info(self, url, download):
        if "broken" in url:
            raise DownloadError("ERROR: network is unreachable")
        if not download:
            return CHANNEL if "channel" in url else TALK
        assert self.params["match_filter"](TALK, incomplete=True) is None
        if self.params["match_filter"](TALK) is None and "huge" not in url:
            with open(self.params["outtmpl"]["default"] % {}, "wb") as file:
                file.write(b"sound")
        return TALK


@pytest.fixture
def extractor(monkeypatch):
    library = SimpleNamespace(YoutubeDL=YoutubeDL, utils=SimpleNamespace(DownloadError=DownloadError))
    monkeypatch.setitem(sys.modules, "yt_dlp", library)
    SEEN.clear()
    return YtDlp("speechgpt2/0 (test)", delay=1.5, max_bytes=1000)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UserError, match=r"speechgpt2\[video\]"):
        YtDlp("agent", 1.0, 1000)


def test_lists(extractor):
    assert [video.url for video in extractor.list("https://v.example/channel")] == [
        "https://v.example/1",
        "https://v.example/2",
    ]
    (video,) = extractor.list("https://v.example/1")
    assert (video.title, video.language, video.licence) == ("Talk", "en", "CC BY 4.0")


def test_download_waits_and_writes_the_requested_file(extractor, tmp_path):
    target = tmp_path / "100 %(title)s"
    video = extractor.download("https://v.example/1", target, lambda video: None)
    assert target.read_bytes() == b"sound" and video.licence == "CC BY 4.0"
    (options,) = SEEN
    assert options["http_headers"]["User-Agent"].startswith("speechgpt2/")
    assert options["sleep_interval_requests"] == 1.5 and options["max_filesize"] == 1000 and options["noplaylist"]


def test_refusals_and_faults(extractor, tmp_path):
    with pytest.raises(ItemRejected, match="not on the list"):
        extractor.download("https://v.example/1", tmp_path / "a", lambda video: f"{video.licence} is not on the list")
    with pytest.raises(ItemRejected, match="too-large"):
        extractor.download("https://v.example/huge", tmp_path / "a", lambda video: None)
    with pytest.raises(RetryLater, match="unreachable"):
        extractor.list("https://v.example/broken")
    assert not (tmp_path / "a").exists()
