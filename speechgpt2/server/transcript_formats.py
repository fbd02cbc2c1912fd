"""Transcripts as the parts of an HTTP response, in the formats of OpenAI's REST interface.

Segments come one by one. A None among them is a heartbeat (`long_response`): each format has a part for it that changes
nothing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

from speechgpt2 import long_form
from speechgpt2.languages import language_of
from speechgpt2.long_form import TranscriptSegment
from speechgpt2.server.reply_api import format_sse

if TYPE_CHECKING:
    from speechgpt2.server.transcription_api import Upload

Segments: TypeAlias = AsyncGenerator[TranscriptSegment | None, None]
log = logging.getLogger("sg2.server")
LANGUAGES = {"en": "english", "zh": "chinese"}


async def to_json(segments: Segments, upload: Upload) -> AsyncGenerator[str, None]:
    """Format a transcript as one JSON object."""
    found: list[TranscriptSegment] = []
    async with aclosing(segments):
        async for segment in segments:
            if segment is None:
                yield " "
            else:
                found.append(segment)
    yield json.dumps(_body(found, upload), ensure_ascii=False)


def _body(segments: list[TranscriptSegment], upload: Upload) -> dict[str, Any]:
    text, seconds = long_form.join(segment.text for segment in segments), upload.reader.seconds
    body: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
    if upload.options.response_format == "verbose_json":
        body |= {"task": "transcribe", "language": LANGUAGES[language_of(text)], "duration": seconds}
        body |= _times(segments, upload)
    _add_late_warnings(segments, upload)
    return body | ({"warnings": upload.warnings} if upload.warnings else {})


def _times(segments: list[TranscriptSegment], upload: Upload) -> dict[str, Any]:
    """Return the times that a client asked for: of segments, of words, or of both."""
    times: dict[str, Any] = {}
    if upload.options.times_segments:
        times["segments"] = [{"id": n, "start": s.start, "end": s.end, "text": s.text} for n, s in enumerate(segments)]
    if upload.options.times_words:
        times["words"] = [word for segment in segments for word in long_form.words_to_json(segment)]
    return times


def _add_late_warnings(segments: list[TranscriptSegment], upload: Upload) -> None:
    """Add and log what is known only at the end. It may be too late for a header."""
    late = [upload.reader.warning] if upload.reader.warning else []
    untimed = sum(not segment.words for segment in segments)
    if upload.options.times_words and untimed:
        text = f"{untimed} of {len(segments)} segments have no word times: their text does not fit their audio"
        late.append(text)
    if late:
        log.warning("a transcription is incomplete", extra={"fields": {"warnings": late}})
    upload.warnings += late


async def to_text(segments: Segments, upload: Upload) -> AsyncGenerator[str, None]:
    """Format a transcript as a line of text."""
    text = ""
    async with aclosing(segments):
        async for segment in segments:
            if segment is None:
                yield " "  # white space is not part of what is said
            else:
                longer = long_form.join([text, segment.text])
                yield longer[len(text) :]
                text = longer
    _add_late_warnings([], upload)
    yield "\n"


async def to_srt(segments: Segments, upload: Upload) -> AsyncGenerator[str, None]:
    """Format a transcript as a SubRip file."""
    number = 0
    async with aclosing(segments):
        async for segment in segments:
            number += segment is not None
            yield "\n" if segment is None else "".join(long_form.to_srt([segment], number))
    _add_late_warnings([], upload)


async def to_vtt(segments: Segments, upload: Upload) -> AsyncGenerator[str, None]:
    """Format a transcript as a WebVTT file."""
    yield long_form.VTT_HEADER
    async with aclosing(segments):
        async for segment in segments:
            yield _vtt_note(upload) if segment is None else long_form.vtt_cue(segment)
    _add_late_warnings([], upload)


def _vtt_note(upload: Upload) -> str:
    return f"NOTE {upload.progress}\n\n"


async def stream_events(segments: Segments, upload: Upload) -> AsyncGenerator[str, None]:
    """Format the words of each segment as server-sent events, as soon as it is transcribed."""
    text = ""
    async with aclosing(segments):
        async for segment in segments:
            if segment is None:
                yield f": {upload.progress}\n\n"
                continue
            longer = long_form.join([text, segment.text])
            for word in re.findall(r"\s*\S+", longer[len(text) :]):
                yield format_sse({"type": "transcript.text.delta", "delta": word})
            text = longer
    _add_late_warnings([], upload)
    yield format_sse({"type": "transcript.text.done", "text": text})


FORMATS: dict[str, tuple[str, Callable[[Segments, Any], AsyncGenerator[str, None]]]] = {
    "json": ("application/json", to_json),
    "verbose_json": ("application/json", to_json),
    "text": ("text/plain; charset=utf-8", to_text),
    "srt": ("text/plain; charset=utf-8", to_srt),
    "vtt": ("text/vtt; charset=utf-8", to_vtt),
}
