"""Conversations in the formats of other data tools: a record with its audio for each line, and Lhotse cuts.

    turns/000012-03-c1.flac   the audio of a line, mono: conversation, number of the line, channel
    clips.jsonl               their records (data/record.py): sg2 data clean FOLDER/clips.jsonl -o run
    cuts.jsonl.gz             a Lhotse cut for each conversation with both channels; the lines are its supervisions

Everything follows from a conversation's line of `conversations.jsonl` (build.py) and its audio.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechgpt2.data.record import AudioInfo, Clip, ClipText, DialogueEvent, Label, Language, Source, Speaker, Style
from speechgpt2.tts.engines import ENGINES
from speechgpt2.tts.utterance import Alignment, Phone, Voice, Word, tones_of
from speechgpt2.types import SAMPLE_RATE

CLIPS, CUTS, TURNS = "clips.jsonl", "cuts.jsonl.gz", "turns"
TRUE_FIELDS = ("text", "lang", "speakers", "align", "style", "events")  # fields of a record that are ground truth
_DIGITS = 4  # of a time in seconds: a tenth of a millisecond

Row = dict[str, Any]  # a conversation's line of `conversations.jsonl`


def span(line: Row) -> slice:
    """Return the samples of a line in its channel."""
    return slice(round(line["start"] * SAMPLE_RATE), round(line["end"] * SAMPLE_RATE))


def clips(row: Row) -> Iterator[Clip]:
    """Yield a record for each line, in order; times are relative to the line's start."""
    for number, line in enumerate(row["lines"]):
        samples = span(line).stop - span(line).start
        id = f"{row['id']}-{number:02d}-c{line['channel']}"
        path = f"{TURNS}/{id}.flac"
        duration = samples / SAMPLE_RATE
        voice = Voice(**row["voices"][line["channel"]])
        words = tuple(Word(*_relative(word, line)) for word in line["words"])
        phones = tuple(Phone(*_relative(phone, line)) for phone in line["phones"])
        yield Clip(
            id, row["id"], row["scene"], Source(f"file:{path}"),
            AudioInfo(path, SAMPLE_RATE, 1, 0.0, duration, "FLAC"), Language(row["lang"], 1.0),
            ClipText(line["text"]),
            (Speaker(voice.speaker),), Alignment(words, phones, tones_of(phones)),
            style=Style(line["style"], row["scene"], voice.accent), events=tuple(_dialogue_events(row, line)),
            labels_from=_labels(voice),
        )  # fmt: skip


def cut(row: Row) -> Row:
    """Return the conversation as a Lhotse cut in plain data; its audio is the file beside it."""
    duration = row["samples"] / SAMPLE_RATE
    recording = {
        "id": row["id"], "sources": [{"type": "file", "channels": [0, 1], "source": row["audio"]}],
        "sampling_rate": SAMPLE_RATE, "num_samples": row["samples"], "duration": duration, "channel_ids": [0, 1],
    }  # fmt: skip
    metadata = {name: row[name] for name in ("scene", "roles", "acoustics", "events")}
    return {
        "id": row["id"], "start": 0.0, "duration": duration, "channel": [0, 1],
        "supervisions": [_supervision(row, number) for number in range(len(row["lines"]))], "recording": recording,
        "custom": metadata, "type": "MultiCut",
    }  # fmt: skip


def write(folder: Path, rows: Iterable[Row], scratch: Path) -> None:
    """Write `clips.jsonl` and `cuts.jsonl.gz` of the conversations into `folder`.

    They are written in the folder `scratch` first, which must be on the same disk.
    """
    records, cuts = scratch / CLIPS, scratch / CUTS
    with (
        records.open("w", encoding="utf-8") as lines,
        cuts.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,  # no time stamp, so that equal input gives equal bytes
    ):
        for row in rows:
            lines.writelines(clip.to_json() + "\n" for clip in clips(row))
            packed.write(json.dumps(cut(row), ensure_ascii=False).encode() + b"\n")
    for path in (records, cuts):
        path.replace(folder / path.name)


def _supervision(row: Row, number: int) -> Row:
    line = row["lines"][number]
    words = [[word, start, round(end - start, _DIGITS), None] for word, start, end in line["words"]]
    return {
        "id": f"{row['id']}-{number:02d}-c{line['channel']}", "recording_id": row["id"], "start": line["start"],
        "duration": round(line["end"] - line["start"], _DIGITS), "channel": line["channel"], "text": line["text"],
        "language": row["lang"], "speaker": Voice(**row["voices"][line["channel"]]).speaker,
        "alignment": {"word": words},
        "custom": {name: line[name] for name in ("role", "kind", "style", "cut", "tool")},
    }  # fmt: skip


def _dialogue_events(row: Row, line: Row) -> Iterator[DialogueEvent]:
    """Yield the events during the line, on either channel."""
    for event in row["events"]:
        start, end = max(event["start"], line["start"]), min(event["end"], line["end"])
        if start < end:
            by = Voice(**row["voices"][event["by"]]).speaker
            yield DialogueEvent(event["type"], *_relative(("", start, end), line)[1:], by)


def _labels(voice: Voice) -> dict[str, Label]:
    label = Label(voice.engine, confidence=1.0, kind="truth")
    labels = dict.fromkeys(TRUE_FIELDS, label)
    if not ENGINES[voice.engine].exact_times:
        labels["align"] = Label(voice.engine)
    return labels


def _relative(label_span: Any, line: Row) -> tuple[str, float, float]:
    """Return (label, start, end) with times relative to the line's start."""
    label, start, end = label_span
    return label, round(start - line["start"], _DIGITS), round(end - line["start"], _DIGITS)
