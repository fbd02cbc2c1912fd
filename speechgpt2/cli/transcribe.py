"""`sg2 transcribe`: speech to text, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from speechgpt2.cli.common import ModelName, print_warning, spinner
from speechgpt2.cli.options import LoadOptions, with_shared_options

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.audio import AudioReader
    from speechgpt2.chat import SpeechGPT
    from speechgpt2.long_form import TranscriptSegment

T = TypeVar("T")
MAX_RECORDING = 24 * 3600.0  # seconds of a recording to transcribe


@with_shared_options
def transcribe(
    audio_files: Annotated[list[Path], typer.Argument(help="Audio files.", metavar="AUDIO...")],
    format: Annotated[
        Literal["text", "srt", "vtt", "json", "jsonl"],
        typer.Option(
            help="Lines of text, subtitles (srt, vtt), or JSON: an object for each file (json) or segment (jsonl)."
        ),
    ] = "text",
    words: Annotated[
        bool,
        typer.Option(
            "--words", help="Add the times of words, by forced alignment; needs espeak-ng: speechgpt2[synthesis]."
        ),
    ] = False,
    model: ModelName = "mini",
    *,
    loading: LoadOptions,
) -> None:
    """Transcribe audio files (speech to text).

    A recording above 15 seconds is cut at the speaker's pauses: each segment is a line with its times, printed as soon
    as it is transcribed. A shorter one is a line without times.

    With --words, a line of text or a cue (srt) is a word; a cue of vtt has the times of its words inside, and JSON
    lists them. A segment has no word times if its transcript does not fit the audio.
    """
    from speechgpt2.audio import AudioReader

    for path in audio_files:
        next(iter(AudioReader(path, max_seconds=MAX_RECORDING)))  # fails before the model is loaded
    if words:
        from speechgpt2.word_times import require_aligner

        with spinner("starting the aligner"):
            require_aligner()
    speechgpt = loading.load(model)
    for path in audio_files:
        transcribe_file(speechgpt, path, format, words)


def transcribe_file(speechgpt: SpeechGPT, path: Path, format: str, words: bool) -> None:
    """Transcribe a file and print the transcript in a format, with progress and warnings on stderr."""
    from speechgpt2 import long_form
    from speechgpt2.audio import AudioReader
    from speechgpt2.word_times import with_word_times

    formatters = {"text": to_lines, "srt": long_form.to_srt, "vtt": long_form.to_vtt, "jsonl": to_json_lines}
    reader = AudioReader(path, max_seconds=MAX_RECORDING)
    segments: list[TranscriptSegment] = []
    with spinner(f"transcribing {path.name}") as show:
        blocks, aligner = with_position(reader, show), with_word_times if words else None
        transcribed = collected(speechgpt.transcribe_segments(blocks, aligner=aligner), segments)
        to_json = partial(to_json_object, reader=reader)
        for text in formatters.get(format, to_json)(transcribed):
            print(text, end="", flush=True)
    if reader.warning:
        print_warning(reader.warning)
    if not segments:
        print_warning(f"{path}: holds no speech")
    elif words and (untimed := sum(not segment.words for segment in segments)):
        print_warning(f"{path}: {untimed} of {len(segments)} segments have no word times: their text does not fit")


def with_position(reader: AudioReader, show: Callable[[str], None]) -> Iterator[np.ndarray]:
    """Yield the blocks of a recording, and show the position once per second of audio, also in silence."""
    shown = 0.0
    for block in reader:
        if reader.seconds >= shown + 1:
            shown = reader.seconds
            total = f" of {reader.promised_seconds:.0f}" if reader.promised_seconds else ""
            show(f"transcribing {Path(reader.name).name}: {shown:.0f}{total} s")
        yield block


def collected(items: Iterable[T], collection: list[T]) -> Iterator[T]:
    """Yield items, and append them to a list."""
    for item in items:
        collection.append(item)
        yield item


def to_lines(segments: Iterable[TranscriptSegment]) -> Iterator[str]:
    """Format segments as lines of text with their times, or a line for each word whose times are known.

    The only segment of a short recording has no times.
    """
    from speechgpt2.long_form import MAX_WINDOW

    segments = iter(segments)
    first, second = next(segments, None), next(segments, None)
    if first is not None and second is None and first.start == 0 and first.end <= MAX_WINDOW and not first.words:
        yield f"{first.text}\n"
        return
    for segment in chain(filter(None, (first, second)), segments):
        for start, end, text in [(w.start, w.end, w.written.strip()) for w in segment.words] or [segment[:3]]:
            yield f"[{start:.2f} → {end:.2f}] {text}\n"


def to_json_lines(segments: Iterable[TranscriptSegment]) -> Iterator[str]:
    """Format each segment as a JSON object on a line."""
    import json

    from speechgpt2 import long_form

    for segment in segments:
        yield json.dumps(long_form.to_json(segment), ensure_ascii=False) + "\n"


def to_json_object(segments: Iterable[TranscriptSegment], reader: AudioReader) -> Iterator[str]:
    """Format all segments of a file as one JSON object."""
    import json

    from speechgpt2 import long_form

    rows = [long_form.to_json(segment) for segment in segments]
    text = long_form.join(row["text"] for row in rows)
    fields = {"file": reader.name, "duration": round(reader.seconds, 3), "text": text, "segments": rows}
    yield json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
