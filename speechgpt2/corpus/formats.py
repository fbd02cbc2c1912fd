"""The formats of training data: each is recognised by its files, and read in parts.

    corpus        corpus.json …                        output of `sg2 data codec-corpus` and others (store.py)
    shar          cuts.*.jsonl.gz + recording.*.tar    Lhotse Shar: output of `sg2 data clean` and `annotate`
    cuts          *cuts*.jsonl.gz                      a Lhotse manifest, with recordings elsewhere (needs lhotse)
    webdataset    *.tar with NAME.flac + NAME.json     the JSON is a Lhotse cut, or holds text, lang, speaker, licence …
    hugging face  *.parquet or *.arrow                 a column `audio`, and columns such as text and speaker
    dialogues     *.jsonl with "messages"              chat messages with optional audio files (dialogue_file.py)
    recordings    audio files                          transcripts beside them (a.txt, metadata.csv, …) or none
    texts         *.txt, or *.jsonl with "text"        written text alone

A part is a shard, or some hundred files, and is read and encoded as a whole. A truncated or damaged shard is a
`UserError`; a single recording that cannot be read is skipped and counted.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from speechgpt2.corpus import dialogue_file
from speechgpt2.corpus.data_config import SYNTHETIC_LICENCE
from speechgpt2.corpus.files import AUDIO, FileTree, decode_audio
from speechgpt2.corpus.metadata import record_of, record_of_cut
from speechgpt2.corpus.store import Corpus, CorpusItem, Record
from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

PART_FILES, PART_RECORDS = 200, 500  # audio files of a part; lines, or records of a corpus, of a part
BATCH_ROWS = 64  # rows of a table that are read at a time
TEXT_LENGTH = 2_000  # most characters of an item of a text document
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "transcripts.csv", "transcripts.tsv", "validated.tsv")


class Skipped(NamedTuple):
    """An item that cannot be read, and the reason."""

    id: str
    reason: str


Item = CorpusItem | Skipped


class DataPart(NamedTuple):
    """A part of a data set.

    Attributes:
        name: For error messages.
        fingerprint: Changes with the part's files.
        read: Yields its items.
        is_split: Whether its records state their split.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterable[Item]]
    is_split: bool = False


def find_parts(path: str) -> list[DataPart]:
    """Return the parts of the data at `path`, in a stable order.

    Raises:
        UserError: If there is nothing, or nothing in a known format.
    """
    tree = FileTree(path)
    for read_parts in FORMATS:
        parts = read_parts(tree)
        if parts:
            return parts
    raise UserError(f"{path}: holds no training data that sg2 reads; docs/training.md lists the formats")


def _part(tree: FileTree, names: Iterable[str], read: Callable[[], Iterable[Item]], label: str = "") -> DataPart:
    names = list(names)
    content = " ".join(f"{name}:{tree.sizes[name]}" for name in names)
    fingerprint = f"{zlib.crc32((content + label).encode()):08x}"
    return DataPart(f"{tree.path}: {names[0]}{label}", fingerprint, read)


# Corpora of this project


def _corpus(tree: FileTree) -> list[DataPart]:
    name = next((n for n in ("corpus.json", "corpus/corpus.json") if n in tree.sizes), None)
    if name is None:
        return []
    if not tree.is_local:
        raise UserError(f"{tree.path}: a corpus is mapped into memory and must be on a local disk")
    corpus = Corpus.open(Path(tree.root) / PurePosixPath(name).parent)
    count = len(corpus.records)
    return [
        _part(tree, [name], partial(_corpus_items, corpus, range(i, min(i + PART_RECORDS, count))), f" {i}")._replace(
            is_split=True
        )
        for i in range(0, count, PART_RECORDS)
    ]


def _corpus_items(corpus: Corpus, numbers: range) -> Iterator[Item]:
    for record in (corpus.records[i] for i in numbers):
        has_pitch = corpus.pitch is not None and record.length
        record = replace(record, licence=record.licence or SYNTHETIC_LICENCE)
        yield CorpusItem(
            record, corpus.pcm(record) if record.length else None, corpus.f0(record) if has_pitch else None
        )


# Lhotse


def _shar(tree: FileTree) -> list[DataPart]:
    shards = [name for name in tree.sizes if re.search(r"(^|/)cuts\.\d+\.jsonl(\.gz)?$", name)]
    parts = []
    for cuts in shards:
        recordings = re.sub(r"cuts(\.\d+)\.jsonl(\.gz)?$", r"recording\1.tar", cuts)
        if recordings not in tree.sizes:
            raise UserError(f"{tree.path}: {cuts} has no {recordings} beside it")
        parts.append(_part(tree, [cuts, recordings], partial(_shar_items, tree, cuts, recordings)))
    return parts


def _shar_items(tree: FileTree, cuts: str, recordings: str) -> Iterator[Item]:
    with _shard(tree, cuts), _lines(tree, cuts) as lines:
        records = [record_of_cut(json.loads(line)) for line in lines]
    with _shard(tree, recordings), tree.open(recordings) as file:
        files = _archive_files(file)
        for record in records:
            name, data = next(((n, d) for n, d in files if n.lower().endswith(AUDIO)), ("", b""))
            if not name:
                raise EOFError
            if PurePosixPath(name).stem != record.id:
                raise UserError(f"{tree.path}: {recordings} holds {name} where {cuts} says {record.id}")
            yield _decoded(record, data, name)


def _cuts(tree: FileTree) -> list[DataPart]:
    names = [name for name in tree.matching(".jsonl.gz", ".jsonl") if "cuts" in PurePosixPath(name).name]
    return [_part(tree, [name], partial(_cut_items, tree, name)) for name in names]


def _cut_items(tree: FileTree, name: str) -> Iterator[Item]:
    lhotse = require("lhotse", "data")
    from lhotse.audio.utils import AudioLoadingError

    with _shard(tree, name), _lines(tree, name) as lines:
        for values in map(json.loads, lines):
            record = record_of_cut(values)
            for source in values.get("recording", {}).get("sources", ()):
                if source["type"] == "file":  # relative to the manifest
                    source["source"] = str(PurePosixPath(tree.root) / PurePosixPath(name).parent / source["source"])
            try:
                pcm = lhotse.serialization.deserialize_item(values).resample(SAMPLE_RATE).load_audio()
            except (AudioLoadingError, OSError, ValueError) as error:
                yield Skipped(record.id, f"unreadable ({str(error).splitlines()[0][:80]})")
                continue
            yield CorpusItem(record, pcm.mean(axis=0))


# WebDataset


def _webdataset(tree: FileTree) -> list[DataPart]:
    return [_part(tree, [name], partial(_webdataset_items, tree, name)) for name in tree.matching(".tar")]


def _webdataset_items(tree: FileTree, name: str) -> Iterator[Item]:
    count = 0
    with _shard(tree, name), tree.open(name) as file:
        for key, files in _samples(_archive_files(file)):
            audio = next((suffix for suffix in files if suffix in AUDIO), None)
            if audio is None:
                continue
            count += 1
            metadata = _json_object(tree, f"{name}, {key}.json", files.get(".json", b"{}"))
            if "supervisions" in metadata:
                record = record_of_cut(metadata)
            else:
                text = files.get(".txt", b"").decode("utf-8", "replace").strip()
                record = record_of(PurePosixPath(key).name, metadata, text=text, source=f"{name}/{key}")
            yield _decoded(record, files[audio], key + audio)
    if not count:
        raise UserError(f"{tree.path}: {name} holds no audio, so it is not a shard of a speech data set")


def _samples(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group consecutive files whose names differ only in the suffix."""
    current, group = None, dict[str, bytes]()
    for name, data in files:
        folder, _, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current and current is not None:
            yield current, group
            group = {}
        current = key
        group[dot + suffix.lower()] = data
    if current is not None:
        yield current, group


# Hugging Face


def _hugging_face(tree: FileTree) -> list[DataPart]:
    return [_part(tree, [name], partial(_table_items, tree, name)) for name in tree.matching(".parquet", ".arrow")]


def _table_items(tree: FileTree, name: str) -> Iterator[Item]:
    pa = require("pyarrow", "data")
    number = 0
    with _shard(tree, name, pa.ArrowException), tree.open(name) as file:
        for row in _rows(pa, file, name):
            audio = row.pop("audio", None)
            id = f"{PurePosixPath(name).stem}-{row.get('id') or number}"
            number += 1
            if audio is None and not row.get("text"):
                raise UserError(f"{tree.path}: {name} has neither a column 'audio' nor 'text'")
            if audio is None:
                yield from _split_document(id, str(row["text"]), row)
                continue
            if not isinstance(audio, dict):
                raise UserError(f"{tree.path}: {name}: the column 'audio' must hold `bytes` or a `path`")
            data = audio.get("bytes") or (tree.read(audio["path"]) if audio.get("path") else b"")
            yield _decoded(record_of(id, row, source=id), data, audio.get("path") or id)


def _rows(pa: Any, file: Any, name: str) -> Iterator[dict[str, Any]]:
    if name.lower().endswith(".parquet"):
        import pyarrow.parquet

        batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS)
    else:
        try:
            batches = iter(pa.ipc.open_stream(file))
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    for batch in batches:
        yield from batch.to_pylist()


# Dialogues


def _dialogues(tree: FileTree) -> list[DataPart]:
    names = [name for name in tree.matching(".jsonl") if '"messages"' in _first_line(tree, name)]
    return [
        _part(tree, [name], partial(dialogue_file.items, tree, name, range(first, first + PART_RECORDS)), f" {first}")
        for name in names
        for first in range(0, dialogue_file.count(tree, name), PART_RECORDS)
    ]


# Recordings


def _recordings(tree: FileTree) -> list[DataPart]:
    names = tree.matching(*AUDIO)
    table = _transcripts(tree) if names else {}
    if table and not any(_row_of(table, name) for name in names):
        raise UserError(f"{tree.path}: the table of transcripts names no recording that is here: {next(iter(table))} …")
    return [
        _part(tree, group, partial(_recording_items, tree, group, table))
        for group in (names[i : i + PART_FILES] for i in range(0, len(names), PART_FILES))
    ]


def _recording_items(tree: FileTree, names: list[str], table: Mapping[str, dict[str, Any]]) -> Iterator[Item]:
    for name in names:
        path = PurePosixPath(name)
        metadata = _row_of(table, name)
        defaults = {"speaker": str(path.parent) if len(path.parts) > 1 else "", "source": name}
        candidates = (str(path.with_suffix(suffix)) for suffix in (".txt", ".lab"))
        if text_file := next((candidate for candidate in candidates if candidate in tree.sizes), None):
            defaults["text"] = " ".join(tree.text(text_file).split())
        yield _decoded(record_of(str(path.with_suffix("")), metadata, **defaults), tree.read(name), name)


def _row_of(table: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the row of a recording; tables name a path, a file, or a file without its suffix."""
    path = PurePosixPath(name)
    return table.get(name) or table.get(path.name) or table.get(path.stem) or {}


def _transcripts(tree: FileTree) -> dict[str, dict[str, Any]]:
    """Return the rows of the tables of transcripts, by the name of their file, with or without suffix."""
    rows: dict[str, dict[str, Any]] = {}
    for name in tree.sizes:
        path = PurePosixPath(name)
        if path.name not in TABLES:
            continue
        for row in _table_rows(tree, name):
            file = next((row[key] for key in ("file_name", "file", "path", "audio", "id") if row.get(key)), None)
            if file is not None:
                rows[str(path.parent / file) if len(path.parts) > 1 else str(file)] = row
                rows.setdefault(PurePosixPath(str(file)).name, row)
    return rows


def _table_rows(tree: FileTree, name: str) -> Iterator[dict[str, Any]]:
    text, suffix = tree.text(name), PurePosixPath(name).suffix
    lines = text.splitlines()
    if suffix == ".jsonl":
        yield from (_json_object(tree, name, line) for line in lines if line.strip())
        return
    if lines and "|" in lines[0] and suffix == ".csv":  # LJ Speech: id|text as read|text with numbers in words
        yield from ({"id": line.split("|")[0], "text": line.split("|")[-1]} for line in lines)
        return
    with _shard(tree, name, csv.Error):
        yield from csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")


# Written text


def _texts(tree: FileTree) -> list[DataPart]:
    names = tree.matching(".txt", ".jsonl")
    return [_part(tree, [name], partial(_text_items, tree, name)) for name in names]


def _text_items(tree: FileTree, name: str) -> Iterator[Item]:
    if name.lower().endswith(".txt"):
        yield from _split_document(name, tree.text(name), {})
        return
    for number, line in enumerate(tree.text(name).splitlines()):
        if line.strip():
            row = _json_object(tree, f"{name}, line {number + 1}", line)
            if not isinstance(row.get("text"), str):
                raise UserError(f"{tree.path}: {name}, line {number + 1}: needs a key 'text', or 'messages'")
            yield from _split_document(f"{name}-{number}", row["text"], row)


def _split_document(id: str, text: str, metadata: Mapping[str, Any]) -> Iterator[Item]:
    """Split a document into items of at most `TEXT_LENGTH`, at blank lines and sentence ends."""
    chunk, number = "", 0
    sentences = [sentence for sentence in re.split(r"(?<=\n\n)|(?<=[.!?]\s)|(?<=[。！？])", text) if sentence]
    for sentence in [*sentences, None]:
        if chunk and (sentence is None or len(chunk) + len(sentence) > TEXT_LENGTH):
            if chunk.strip():
                record = record_of(f"{id}#{number}", {**metadata, "text": "", "role": "text"}, text=chunk, source=id)
                yield CorpusItem(record)
                number += 1
            chunk = ""
        chunk += sentence or ""


# Shards


def _decoded(record: Record, data: bytes, name: str) -> Item:
    try:
        return CorpusItem(record, decode_audio(data, name))
    except UserError as error:
        return Skipped(record.id, str(error))


def _archive_files(file: Any) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of a tar archive, read as a stream."""
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


@contextmanager
def _lines(tree: FileTree, name: str) -> Iterator[Iterable[str]]:
    with tree.open(name) as raw:
        packed = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
        yield io.TextIOWrapper(packed, encoding="utf-8")  # type: ignore[arg-type]


def _first_line(tree: FileTree, name: str) -> str:
    with _shard(tree, name), _lines(tree, name) as lines:
        return next(iter(lines), "")


def _json_object(tree: FileTree, where: str, text: str | bytes) -> dict[str, Any]:
    """Return a JSON object. Raises `UserError`, which says where, if it is not one."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{tree.path}: {where}: not a JSON object")
    return found


@contextmanager
def _shard(tree: FileTree, name: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise `UserError` instead of the errors of a damaged shard."""
    damage: tuple[type[Exception], ...] = (
        tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, json.JSONDecodeError, UnicodeDecodeError, *errors,
    )  # fmt: skip
    try:
        yield
    except damage:
        raise UserError(f"{tree.path}: {name} is cut off or damaged; copy it again, or remove it") from None


FORMATS = (_corpus, _shar, _cuts, _webdataset, _hugging_face, _dialogues, _recordings, _texts)
