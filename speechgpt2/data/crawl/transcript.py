"""Transcripts that a feed names beside an episode (`podcast:transcript`): WebVTT, SubRip, JSON or plain text -> lines.

They are untrusted text. One that cannot be parsed is ignored, and the recording is kept without a transcript.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.tts.utterance import Word

TYPES = ("text/vtt", "application/x-subrip", "application/srt", "application/json", "text/plain")  # the best first
MAX_LINES, MAX_TEXT = 100_000, 1 << 20  # of a transcript; characters
_TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^<>]{0,300}>")  # <v Speaker>, <b>, <00:01.000>


def lines_of(text: str, type: str) -> tuple[Word, ...]:
    """Parse a transcript of one of the `TYPES`.

    Returns:
        Lines with their times in seconds, in order; plain text becomes one line of duration 0.

    Raises:
        ItemRejected: it is too long or cannot be parsed.
    """
    if len(text) > MAX_TEXT:
        raise ItemRejected("too-large", f"a transcript of more than {MAX_TEXT} characters")
    read = {"application/json": _json, "text/plain": _plain}.get(type, _cues)
    lines = sorted((line for line in read(text) if line.text), key=lambda line: (line.start, line.end))
    if not lines or len(lines) > MAX_LINES:
        raise ItemRejected("transcript", "has no line" if not lines else f"has more than {MAX_LINES} lines")
    return tuple(lines)


def _cues(text: str) -> Iterator[Word]:
    """Parse WebVTT and SubRip, which share this form: a line of times, lines of text, an empty line."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        rows = block.split("\n")
        for number, row in enumerate(rows):
            times = _TIMES.match(row)
            if times:
                words = html.unescape(_TAG.sub("", " ".join(rows[number + 1 :])))
                yield Word(_single(words), _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:]))
                break


def _json(text: str) -> Iterator[Word]:
    """Parse the JSON of the podcast namespace: {"segments": [{"startTime": 0.5, "endTime": 1.5, "body": "Hello."}]}."""
    try:
        segments = json.loads(text)["segments"]
        for segment in segments:
            start, end = float(segment["startTime"]), float(segment["endTime"])
            if math.isfinite(start) and math.isfinite(end):
                yield Word(_single(str(segment["body"])), round(start, 3), round(end, 3))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ItemRejected("transcript", f"is not a transcript in JSON ({type(error).__name__})") from None


def _plain(text: str) -> Iterator[Word]:
    yield Word(_single(text), 0.0, 0.0)


def _single(text: str) -> str:
    return " ".join(text.split())


def _seconds(hours: Any, minutes: Any, seconds: Any, fraction: Any) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + round(int(fraction) / 10 ** len(fraction), 3)
