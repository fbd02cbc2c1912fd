"""Converts any data to a corpus of samples with pitch, which the codec's trainer reads (codec_dataset.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from speechgpt2.corpus.admission import Refusals, admitted
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.formats import DataPart, find_parts
from speechgpt2.corpus.store import META, Corpus, CorpusItem, CorpusWriter
from speechgpt2.errors import UserError


def as_corpus(sources: Sequence[DataConfig], folder: Path) -> Corpus:
    """Return a corpus of all sources.

    If the only source is a corpus, it is returned. Otherwise a corpus is written, at the first call only; a killed
    import continues with the missing parts.

    Args:
        sources: The data.
        folder: Folder of the corpus.

    Raises:
        UserError: If there is nothing to train on, or a source has changed since the corpus was written.
    """
    first = Path(sources[0].path)
    if len(sources) == 1 and (first / META).exists():
        return Corpus.open(first)
    from speechgpt2.training import distributed

    parts = [(part, source) for source in sources for part in find_parts(source.path)]
    recipe = {"sources": [asdict(s) for s in sources], "parts": [part.fingerprint for part, _ in parts]}
    if distributed.rank() == 0 and not (folder / META).exists():
        _write(CorpusWriter(folder, recipe), parts)
    distributed.barrier()
    corpus = Corpus.open(folder)
    if corpus.meta["recipe"] != _as_json(recipe):
        raise UserError(f"{folder} holds other data than --data names; choose another --out, or delete that folder")
    if not any(record.split == "train" and record.length for record in corpus.records):
        raise UserError(f"nothing to train on: all {len(corpus)} utterances are held out, or none was accepted")
    return corpus


def _write(writer: CorpusWriter, parts: Sequence[tuple[DataPart, DataConfig]]) -> None:
    refusals = Refusals()
    missing = [number for number in range(len(parts)) if not writer.has_part(number)]
    for number in track(missing, "importing", console=Console(stderr=True), disable=not missing):
        part, source = parts[number]
        writer.write_part(number, _with_pitch(part, source, refusals))
    for reason, count in refusals.refused.most_common():
        print(f"refused: {count} {reason} (such as {refusals.examples[reason]})", file=sys.stderr)
    writer.finish(len(parts))


def _with_pitch(part: DataPart, source: DataConfig, refusals: Refusals) -> Iterator[CorpusItem]:
    from speechgpt2.dsp.world_pitch import track_pitch

    for item in admitted(part, source, refusals):
        if item.pcm is not None:
            yield CorpusItem(item.record, item.pcm, track_pitch(item.pcm) if item.f0 is None else item.f0)


def _as_json(recipe: dict) -> dict:
    import json

    return json.loads(json.dumps(recipe))
