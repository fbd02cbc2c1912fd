"""Transcripts of episodes, friendly and hostile, from the feed to the record."""

import json

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl import demo_site
from speechgpt2.data.crawl.discover import DocumentSource, links_of
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.transcript import lines_of
from speechgpt2.tts.utterance import Word
from tests.data.crawl.test_discover import item, rss

VTT = """WEBVTT - a talk

NOTE nothing is said here

1
00:01.500 --> 00:02.000 align:start
<v Ann>Good <b>morning</b>,
all &amp; sundry.

01:00:00.000 --> 01:00:01.000
Good night.
"""
SRT = "1\r\n00:00:01,500 --> 00:00:02,000\r\nGood morning.\r\n\r\n2\r\n00:00:02,5 --> 00:00:03,25\r\nHello.\r\n"
JSON = json.dumps({"version": "1.0.0", "segments": [{"speaker": "Ann", "startTime": 1.5, "endTime": 2, "body": "Hi."}]})


@pytest.mark.parametrize(
    ("text", "type", "lines"),
    [
        (VTT, "text/vtt", (Word("Good morning, all & sundry.", 1.5, 2.0), Word("Good night.", 3600.0, 3601.0))),
        (SRT, "application/x-subrip", (Word("Good morning.", 1.5, 2.0), Word("Hello.", 2.5, 3.25))),
        (JSON, "application/json", (Word("Hi.", 1.5, 2.0),)),
        (" Good\n\nmorning. ", "text/plain", (Word("Good morning.", 0.0, 0.0),)),
    ],
)
def test_lines_with_their_times(text, type, lines):
    assert lines_of(text, type) == lines


def test_written_transcript_is_read_back():
    lines = (Word("One.", 0.0, 61.25), Word("二。", 3661.5, 3700.0))
    assert lines_of(demo_site.subtitles(lines), "text/vtt") == lines


@pytest.mark.parametrize(
    ("text", "type"),
    [
        ("", "text/plain"), ("<html>No such page</html>", "text/vtt"), ("[" * 100_000, "application/json"),
        ('{"segments": 3}', "application/json"), ('{"segments": [{"body": "x"}]}', "application/json"),
        ('{"segments": [{"body": "x", "startTime": NaN, "endTime": 1}]}', "application/json"),
        ("x" * 2_000_000, "text/plain"), ("00:00:01.0 --> 00:00:02.0\na\n\n" * 30_000 * 2, "text/vtt"),
    ],
)  # fmt: skip
def test_invalid_transcript_is_rejected(text, type):
    with pytest.raises(ItemRejected):
        lines_of(text, type)


def test_best_transcript_of_each_episode_is_named():
    named = (
        '<podcast:transcript url="a.srt" type="application/x-subrip"/>'
        '<podcast:transcript url="a.vtt" type="text/vtt; charset=utf-8" language="en"></podcast:transcript>'
        '<podcast:transcript url="a.html" type="text/html"/>'
        '<podcast:transcript url="file:///etc/passwd" type="text/vtt"/>'
    )
    links = links_of(
        "feed",
        rss(item("a.mp3", named) + item("b.mp3")).encode(),
        "text/xml",
        DocumentSource("http://example.org/show/feed.xml"),
    )
    assert [link.url for link in links] == ["http://example.org/show/a.mp3", "http://example.org/show/b.mp3"]
    assert links[0].facts["transcript"] == ["http://example.org/show/a.vtt", "text/vtt"]
    assert "transcript" not in links[1].facts
