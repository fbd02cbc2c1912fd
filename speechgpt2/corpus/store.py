"""A corpus on disk: one file of samples, one line of JSON per utterance, and optionally its pitch.

    corpus.json   format version, totals, and the recipe that built it
    index.jsonl   one `Record` per line, in the order of the samples
    pcm.i16       int16 mono at 24 kHz, utterances end to end
    f0.f16        float16 Hz at 10 ms, value i belongs to sample 240·i, 0 is unvoiced (optional)

Every utterance is zero-padded to whole codec frames (960 samples), so that both files have the same positions. A corpus
is written in parts, which are renamed when they are complete. So a killed build resumes, and its result is the same
bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2 import hub
from speechgpt2.dsp.world_pitch import F0_HOP
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Phone, Utterance, Word
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

FORMAT = 1
PAD_TO = FRAME_SIZE
ASSISTANT_VOICE = "assistant_voice"  # key of `Record.extra`: the number of the assistant's voice that speaks
CLONED = "cloned"  # skill of an utterance that is learnt only with another utterance of its speaker as the prompt

_PCM, _F0, _INDEX, META, _PARTS = "pcm.i16", "f0.f16", "index.jsonl", "corpus.json", "parts"


class CorpusError(UserError):
    """A corpus folder is missing, unfinished, damaged, or was built by another recipe."""


@dataclass(frozen=True)
class Record:
    """One utterance of a corpus; ``length`` is 0 if it has text only.

    start, length   samples in ``pcm.i16``, both multiples of 960
    speaker, voice  the speaker's id, and the voice's id with settings (equal for real recordings)
    role            "user", "assistant", or "" if neither; "text" for written text alone
    split           "train" or "test"
    licence         SPDX identifier, "own" or "synthetic"; "" if unknown
    source          where it comes from: a page, a book, a file
    extra           further values of a builder: exchange id, skill, question, answer key …
    """

    id: str
    text: str
    lang: str
    start: int = 0
    length: int = 0
    speaker: str = ""
    voice: str = ""
    role: str = ""
    split: str = "train"
    words: tuple[Word, ...] = ()
    phones: tuple[Phone, ...] = ()
    licence: str = ""
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read what `to_json` wrote."""
        values = json.loads(line)
        values["words"] = tuple(Word(*w) for w in values["words"])
        values["phones"] = tuple(Phone(*p) for p in values["phones"])
        return cls(**values)


@dataclass(frozen=True)
class CorpusItem:
    """A record to be written, with its audio: `pcm` float32 [N], `f0` float [⌈N/240⌉] in Hz or None."""

    record: Record
    pcm: np.ndarray | None = None
    f0: np.ndarray | None = None


def item_of(utterance: Utterance, id: str, *, f0: np.ndarray | None = None, **fields: Any) -> CorpusItem:
    """Return a `CorpusItem` for a synthetic utterance; ``fields`` are further fields of its `Record`."""
    voice = utterance.voice
    record = Record(
        id, utterance.text, utterance.lang, speaker=voice.speaker, voice=voice.id,
        words=utterance.words, phones=utterance.phones, **fields,
    )  # fmt: skip
    return CorpusItem(record, utterance.pcm, f0)


class CorpusWriter:
    """Builds a corpus from numbered parts. Several processes may write parts, each with its own writer.

    Args:
        path: The corpus's folder.
        recipe: Any JSON value that determines the content.

    Raises:
        CorpusError: The folder was begun with another recipe.
    """

    def __init__(self, path: str | Path, recipe: dict[str, Any]) -> None:
        self.path, self.recipe = Path(path), recipe
        self._parts = self.path / _PARTS
        self._parts.mkdir(parents=True, exist_ok=True)
        recipe_file = self._parts / "recipe.json"
        if not recipe_file.exists():
            _write_text(recipe_file, json.dumps(recipe))
        elif json.loads(recipe_file.read_text()) != recipe:
            raise CorpusError(f"{self.path} was begun with another recipe; delete it or choose another folder")

    def has_part(self, part: int) -> bool:
        """Return whether the part is complete."""
        return self._file(part, "jsonl").exists()

    def write_part(self, part: int, items: Iterable[CorpusItem]) -> None:
        """Write one part. Its index is renamed last, so if there is an index, the samples are complete."""
        start, records = 0, []
        pcm_temp, f0_temp = self._file(part, f"pcm.{os.getpid()}"), self._file(part, f"f0.{os.getpid()}")
        with pcm_temp.open("wb") as pcm_file, f0_temp.open("wb") as f0_file:
            for item in items:
                length = 0
                if item.pcm is not None:
                    pcm = _to_int16(item.pcm)
                    length = len(pcm)
                    pcm_file.write(pcm.tobytes())
                    if item.f0 is not None:
                        f0_file.write(_fit(item.f0, length // F0_HOP).tobytes())
                values = {**vars(item.record), "start": start, "length": length}
                records.append(Record(**values).to_json())
                start += length
        pcm_temp.rename(self._file(part, "pcm"))
        f0_temp.rename(self._file(part, "f0"))
        _write_text(self._file(part, "jsonl"), "".join(line + "\n" for line in records))

    def finish(self, parts: int) -> Corpus:
        """Join ``parts`` parts into the corpus and open it. Raises CorpusError if one is missing."""
        missing = [part for part in range(parts) if not self.has_part(part)]
        if missing:
            raise CorpusError(f"{self.path} lacks {len(missing)} of {parts} parts, the first is {missing[0]}")
        for name, suffix in ((_PCM, "pcm"), (_F0, "f0")):
            with (self.path / name).open("wb") as target:
                for part in range(parts):
                    with self._file(part, suffix).open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
        records = list(self._all_records(parts))
        self._drop_empty_f0()
        _write_text(self.path / _INDEX, "".join(r.to_json() + "\n" for r in records))
        samples = sum(r.length for r in records)
        meta = {"format": FORMAT, "sample_rate": SAMPLE_RATE, "utterances": len(records), "samples": samples}
        _write_text(self.path / META, json.dumps({**meta, "recipe": self.recipe}, indent=1))
        shutil.rmtree(self._parts)
        return Corpus.open(self.path)

    def _all_records(self, parts: int) -> Iterator[Record]:
        """Yield the records of all parts, with starts counted from the first sample of the corpus."""
        offset = 0
        for part in range(parts):
            length = 0
            for line in self._file(part, "jsonl").read_text(encoding="utf-8").splitlines():
                record = Record.from_json(line)
                length += record.length
                yield Record(**{**vars(record), "start": record.start + offset})
            offset += length

    def _drop_empty_f0(self) -> None:
        if not (self.path / _F0).stat().st_size:
            (self.path / _F0).unlink()

    def _file(self, part: int, suffix: str) -> Path:
        return self._parts / f"{part:05d}.{suffix}"


@dataclass(frozen=True)
class Corpus:
    """An open corpus: ``records``, and their audio, read from memory-mapped files on demand."""

    path: Path
    records: tuple[Record, ...]
    meta: dict[str, Any]
    samples: np.ndarray = field(repr=False)  # int16 [all]
    pitch: np.ndarray | None = field(repr=False)  # float16 [all / 240]

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a finished corpus. Raises CorpusError with the reason if it is not one."""
        path = Path(path)
        if not (path / META).exists():
            unfinished = (path / _PARTS).exists()
            reason = "is unfinished: run its build again to resume it" if unfinished else "holds no corpus"
            raise CorpusError(f"{path} {reason}")
        meta = json.loads((path / META).read_text())
        if meta["format"] != FORMAT or meta["sample_rate"] != SAMPLE_RATE:
            raise CorpusError(f"{path} has format {meta['format']} at {meta['sample_rate']} Hz; build it again")
        with (path / _INDEX).open(encoding="utf-8") as lines:
            records = tuple(Record.from_json(line) for line in lines)
        samples = _memory_map(path / _PCM, np.int16, meta["samples"])
        has_f0 = (path / _F0).exists()
        pitch = _memory_map(path / _F0, np.float16, meta["samples"] // F0_HOP) if has_f0 else None
        return cls(path, records, meta, samples, pitch)

    @property
    def hours(self) -> float:
        """Hours of all audio."""
        return self.meta["samples"] / SAMPLE_RATE / 3600

    def __len__(self) -> int:
        return len(self.records)

    def pcm(self, record: Record) -> np.ndarray:
        """Return the samples of an utterance, float32 [length] in −1…1."""
        return self.samples[record.start : record.start + record.length].astype(np.float32) / 32768

    def f0(self, record: Record) -> np.ndarray:
        """Return the pitch of an utterance, float32 [length / 240] in Hz, 0 where unvoiced.

        Raises:
            CorpusError: The corpus has no pitch.
        """
        if self.pitch is None:
            raise CorpusError(f"{self.path} was built without pitch")
        start = record.start // F0_HOP
        return self.pitch[start : start + record.length // F0_HOP].astype(np.float32)

    def select(self, **fields: Any) -> list[Record]:
        """Return the records with these values of fields: ``select(split="train", lang="zh")``."""
        return [r for r in self.records if all(getattr(r, k) == v for k, v in fields.items())]


def pairs(records: Iterable[Record]) -> Iterator[tuple[Record, Record]]:
    """Yield question and reply of every exchange: the records with the same ``extra["exchange"]``."""
    questions: dict[str, Record] = {}
    for record in records:
        exchange = record.extra.get("exchange")
        if exchange is None:
            continue
        if record.role == "user":
            questions[exchange] = record
        else:
            yield questions.pop(exchange), record


def _to_int16(pcm: np.ndarray) -> np.ndarray:
    """Convert float [N] to int16, padded with zeros to a multiple of 960."""
    padded = np.zeros(-(-len(pcm) // PAD_TO) * PAD_TO, np.int16)
    padded[: len(pcm)] = np.round(np.clip(pcm, -1, 32767 / 32768) * 32768)
    return padded


def _fit(values: np.ndarray, length: int) -> np.ndarray:
    """Convert to float16 [length], cut or padded with zeros (unvoiced)."""
    fitted = np.zeros(length, np.float16)
    fitted[: min(length, len(values))] = values[:length]
    return fitted


def _memory_map(path: Path, dtype: type, length: int) -> np.ndarray:
    size = path.stat().st_size if path.exists() else -1
    if size != length * np.dtype(dtype).itemsize:
        raise CorpusError(f"{path} is missing or damaged: {size} bytes, not {length * np.dtype(dtype).itemsize}")
    return np.memmap(path, dtype, "r") if length else np.zeros(0, dtype)


def _write_text(path: Path, text: str) -> None:
    hub.write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
