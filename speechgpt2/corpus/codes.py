"""The codes of all training data, encoded once.

    CODES/NAME-KEY/00000-FINGERPRINT.npy     int16 [frames, K]: the codes of a part's utterances, one after the other
    CODES/NAME-KEY/00000-FINGERPRINT.jsonl   their records, and in the last line the counts of refused items

NAME is that of the source, KEY depends on the codec and on the rules of admission. A part is written completely or not
at all, so a killed run continues with the missing parts. A part whose files have changed is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.codec.model import Codec
from speechgpt2.corpus.admission import Refusals, admitted
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.formats import DataPart, find_parts
from speechgpt2.corpus.store import PAD_TO, CorpusItem, Record
from speechgpt2.errors import UserError
from speechgpt2.nn.precision import has_fast_bf16
from speechgpt2.training import distributed
from speechgpt2.types import SAMPLE_RATE

BATCH = 16  # utterances per batch of the encoder
SORTED = 128  # utterances that are sorted by length, so that batches have little padding


@dataclass(frozen=True)
class CodedData:
    """Records with their codes.

    Attributes:
        records: The utterances; `Record.start` counts from the first sample of all shards.
        weights: Weights of the records in a draw, `[records]`.
        shards: Codes of each part, int16 `[frames, K]`, mapped into memory.
        starts: The index of each shard's first frame.
    """

    records: tuple[Record, ...]
    weights: np.ndarray
    shards: tuple[np.ndarray, ...]
    starts: tuple[int, ...]

    def codes(self, record: Record) -> Tensor:
        """Return the codes of an utterance, `[T, K]` int64."""
        first = record.start // PAD_TO
        shard = bisect_right(self.starts, first) - 1
        first -= self.starts[shard]
        return torch.from_numpy(self.shards[shard][first : first + record.length // PAD_TO].astype(np.int64))

    def texts(self) -> Iterator[str]:
        """Yield all training texts."""
        for record in self.records:
            if record.split == "train":
                yield record.text
                yield from record.extra.get("typed", ())


def encode_data(
    sources: Sequence[DataConfig], codec: Codec, folder: Path, device: torch.device | str = "cpu"
) -> CodedData:
    """Encode the parts that are not encoded yet, and open all. The processes of a run share the work.

    The encoder uses bfloat16 where that is faster. Some codes (1, 3 and 5 % by codebook) are then not the nearest ones,
    which does not matter for training.

    Args:
        sources: The data.
        codec: The codec; it is moved to `device`.
        folder: Folder of the codes.
        device: Device of the codec.

    Raises:
        UserError: If a source holds no data, if all of its data are refused, or if a shard is damaged.
    """
    codec = codec.to(device).eval()
    digest = _digest(codec)
    jobs = [
        (part, source, _stem(folder, source, digest, number, part))
        for source in sources
        for number, part in enumerate(find_parts(source.path))
    ]
    missing = [job for job in jobs if not _index(job[-1]).exists()]
    share = missing[distributed.rank() :: distributed.world_size()]
    console = Console(stderr=True, quiet=distributed.rank() > 0)
    for part, source, stem in track(share, "encoding", console=console, disable=not share):
        _encode_part(part, source, stem, codec)
    distributed.barrier()
    return _open([(source, stem) for _, source, stem in jobs])


def _summary(records: Sequence[Record], refused: Counter[str], examples: dict[str, str]) -> str:
    """Return the numbers of accepted and refused items as one line."""
    hours = sum(r.length for r in records) / SAMPLE_RATE / 3600
    line = f"{len(records)} utterances ({hours:.2f} h), {sum(r.split == 'test' for r in records)} of them held out"
    reasons = "; ".join(f"{n} {reason} (such as {examples[reason]})" for reason, n in refused.most_common(4))
    if reasons:
        line += f"; refused: {reasons}"
    return line + ("; if they are yours, say --licence own" if "without a licence" in refused else "")


def _encode_part(part: DataPart, source: DataConfig, stem: Path, codec: Codec) -> None:
    refusals, records, codes, start = Refusals(), [], [], 0
    items = admitted(part, source, refusals)
    while group := list(islice(items, SORTED)):
        for item, rows in zip(group, _encode(group, codec)):
            length = len(rows) * PAD_TO
            records.append(replace(item.record, start=start, length=length))
            codes.append(rows)
            start += length
    books = codec.config.quantizer.codebooks
    stem.parent.mkdir(parents=True, exist_ok=True)
    hub.save_array(stem.with_suffix(".npy"), np.concatenate([*codes, np.zeros((0, books), np.int16)]))
    lines = [r.to_json() for r in records] + [json.dumps({"refused": refusals.refused, "examples": refusals.examples})]
    text = "".join(line + "\n" for line in lines)
    hub.write_atomically(_index(stem), lambda scratch: scratch.write_text(text, encoding="utf-8"))


@torch.no_grad()
def _encode(items: Sequence[CorpusItem], codec: Codec) -> list[np.ndarray]:
    """Return the codes `[T, K]` (int16) of each item, none for text."""
    device = next(codec.parameters()).device
    codes = [np.zeros((0, codec.config.quantizer.codebooks), np.int16)] * len(items)
    spoken = {i: item.pcm for i, item in enumerate(items) if item.pcm is not None}
    order = sorted(spoken, key=lambda i: len(spoken[i]))
    for first in range(0, len(order), BATCH):
        group = order[first : first + BATCH]
        frames = {i: -(-len(spoken[i]) // PAD_TO) for i in group}
        pcm = torch.zeros(len(group), max(frames.values()) * PAD_TO)
        for row, i in zip(pcm, group):
            row[: len(spoken[i])] = torch.from_numpy(np.ascontiguousarray(spoken[i], np.float32))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            rows = codec.encode(pcm.to(device)).cpu()
        for row, i in zip(rows, group):
            codes[i] = row[: frames[i]].numpy().astype(np.int16)
    return codes


def _open(parts: Iterable[tuple[DataConfig, Path]]) -> CodedData:
    records: list[Record] = []
    weights: list[float] = []
    shards, starts, first = [], [], 0
    refused, examples = Counter[str](), dict[str, str]()
    for source, stem in parts:
        *lines, summary_line = _index(stem).read_text(encoding="utf-8").splitlines()
        summary = json.loads(summary_line)
        refused.update(summary["refused"])
        examples = {**summary["examples"], **examples}
        part_records = [Record.from_json(line) for line in lines]
        records += [_in_all_data(r, first * PAD_TO, stem.parent.name) for r in part_records]
        weights += [source.weight] * len(part_records)
        shards.append(np.load(stem.with_suffix(".npy"), mmap_mode="r"))
        starts.append(first)
        first += len(shards[-1])
    summary = _summary(records, refused, examples)
    if all(record.split == "test" for record in records):
        raise UserError(f"nothing to train on: {summary}")
    if distributed.rank() == 0:
        print(f"data: {summary}", file=sys.stderr)
    return CodedData(tuple(records), np.array(weights), tuple(shards), tuple(starts))


def _in_all_data(record: Record, start: int, source: str) -> Record:
    """Return a record whose start counts from the first sample of all data, and whose names are unique there."""
    names: dict[str, Any] = {
        k: f"{source}/{record.extra[k]}" for k in ("conversation", "exchange") if k in record.extra
    }
    return replace(record, id=f"{source}/{record.id}", start=record.start + start, extra={**record.extra, **names})


def _digest(codec: Codec) -> str:
    """Return a digest of the encoder and the codebooks, which determine the codes."""
    content = hashlib.sha256(json.dumps(configs.to_dict(codec.config)).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        if name.startswith(("encoder", "quantizer")):
            content.update(name.encode())
            content.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return content.hexdigest()


def _stem(folder: Path, source: DataConfig, codec: str, number: int, part: DataPart) -> Path:
    rules = json.dumps([source.path, source.licence, sorted(source.licences), source.lang, source.held_out, codec])
    key = hashlib.sha256(rules.encode()).hexdigest()[:10]
    name = re.sub(r"[^\w.-]+", "-", source.path.rstrip("/").split("/")[-1]) or "data"
    return folder / f"{name}-{key}" / f"{number:05d}-{part.fingerprint}"


def _index(stem: Path) -> Path:
    return stem.with_suffix(".jsonl")
