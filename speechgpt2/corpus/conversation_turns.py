"""Conversations as a corpus of turns, for training of the language model (task_dataset.py).

    corpus/        the turns end to end (corpus/store.py), which `sg2 train lm --data FOLDER` encodes and draws from

A turn is everything that one speaker says before the other speaker's turn. Backchannels are not turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechgpt2.corpus.store import Corpus, CorpusItem, CorpusWriter, Record
from speechgpt2.tts.utterance import Phone, Voice, Word
from speechgpt2.types import SAMPLE_RATE

CORPUS_FOLDER, RECIPE_KIND = "corpus", "conversations"
PART_CONVERSATIONS = 500  # conversations in a part of the corpus
ASSISTANTS = frozenset({"assistant", "助手"})  # roles that the model takes

Row = dict[str, Any]  # a conversation's line of `conversations.jsonl`


def write_corpus(folder: Path, rows: Iterable[Row], recipe: dict[str, Any]) -> Corpus:
    """Write the corpus of the conversations in `folder`, or open it if it exists.

    Args:
        folder: Folder of the conversations and of the corpus.
        rows: Lines of `conversations.jsonl`.
        recipe: What determines the content.
    """
    path, parts = folder / CORPUS_FOLDER, 0
    if (path / "corpus.json").exists():
        return Corpus.open(path)
    writer, remaining = CorpusWriter(path, {"kind": RECIPE_KIND, **recipe}), iter(rows)
    while chunk := list(islice(remaining, PART_CONVERSATIONS)):
        if not writer.has_part(parts):
            writer.write_part(parts, (item for row in chunk for item in items(row, folder)))
        parts += 1
    return writer.finish(parts)


def open_corpus(path: Path) -> Corpus:
    """Open a corpus, or that of a folder of conversations. Raises `CorpusError`."""
    return Corpus.open(path / CORPUS_FOLDER if (path / CORPUS_FOLDER).is_dir() else path)


def items(row: Row, folder: Path) -> Iterator[CorpusItem]:
    """Yield the turns of a conversation with their audio, in order."""
    pcm, _ = soundfile.read(folder / row["audio"], dtype="float32")
    for number, lines in enumerate(turns(row["lines"])):
        first, last, channel = lines[0], lines[-1], lines[0]["channel"]
        voice = Voice(**row["voices"][channel])
        start = first["start"]
        words = tuple(Word(w, a - start, b - start) for line in lines for w, a, b in line["words"])
        phones = tuple(Phone(p, a - start, b - start) for line in lines for p, a, b in line["phones"])
        text = ("" if row["lang"] == "zh" else " ").join(line["text"] for line in lines)
        extra = {"conversation": row["id"], "channel": channel, "cut": last["cut"], "style": last["style"]}
        record = Record(
            f"{row['id']}-{number:02d}", text, row["lang"], speaker=voice.speaker, voice=voice.id,
            role="assistant" if first["role"] in ASSISTANTS else "", words=words, phones=phones, extra=extra,
        )  # fmt: skip
        samples = slice(round(start * SAMPLE_RATE), round(last["end"] * SAMPLE_RATE))
        yield CorpusItem(record, np.ascontiguousarray(pcm[samples, channel]))


def turns(lines: Iterable[Row]) -> Iterator[list[Row]]:
    """Group consecutive lines of a channel."""
    for _, group in groupby((line for line in lines if line["kind"] != "backchannel"), lambda line: line["channel"]):
        yield list(group)
