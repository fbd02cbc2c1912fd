"""All measures of kept and rejected clips in one Parquet file. Needs the extra `data` (pyarrow).

A row per clip, in the order of the clips: id, parent, url, licence, language, seconds, kept, stage and reason of the
rejection with score and threshold, and all numbers of prosody, quality and text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from speechgpt2.data.record import Clip
from speechgpt2.errors import UserError

ROWS = 4096  # rows in a group, and in memory
TEXTS = ("id", "parent_id", "url", "spdx", "language", "text", "speaker", "stage", "reason", "detail")
NUMBERS = (
    "snr", "loudness", "bandwidth", "clipping", "overlap", "music", "noise", "silence",
    "f0_mean", "f0_std", "f0_low", "f0_high", "energy", "rate",
)  # fmt: skip


def row_of(clip: Clip) -> dict[str, Any]:
    """Return the plain values of a row."""
    rejection = clip.rejection
    return {
        "id": clip.id, "parent_id": clip.parent_id, "url": clip.source.url, "spdx": clip.source.spdx or "",
        "language": clip.lang.code, "text": clip.text.norm or clip.text.raw,
        "speaker": clip.speakers[0].id if clip.speakers else "", "start": clip.audio.start,
        "seconds": clip.audio.duration, "kept": clip.kept, "stage": rejection.stage if rejection else "",
        "reason": rejection.reason if rejection else "", "detail": rejection.detail if rejection else "",
        "score": rejection.score if rejection else None, "threshold": rejection.threshold if rejection else None,
        **{name: getattr(clip.quality, name, None) for name in NUMBERS[:8]},
        **{name: getattr(clip.prosody, name) for name in NUMBERS[8:]},
        "cer": clip.text.cer, "mos": sorted(clip.quality.mos.items()), "extra": sorted(clip.quality.extra.items()),
    }  # fmt: skip


def write(clips: Iterable[Clip], path: Path, scratch: Path) -> int:
    """Write the scores of `clips` and return the number of rows. `scratch` is a folder on the same disk."""
    pyarrow, parquet = _pyarrow()
    schema, rows = _schema(pyarrow), 0
    clips = iter(clips)
    part = scratch / "scores.part"
    with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        while group := [row_of(clip) for clip in islice(clips, ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            rows += len(group)
    os.replace(part, path)
    return rows


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a scores file. Raises `UserError` if there is none."""
    _, parquet = _pyarrow()
    if not path.is_file():
        raise UserError(f"{path}: there is no scores file")
    for batch in parquet.ParquetFile(path).iter_batches(ROWS):
        for row in batch.to_pylist():
            yield {**row, "mos": dict(row["mos"]), "extra": dict(row["extra"])}


def check() -> None:
    """Raise `UserError` if scores cannot be written on this machine."""
    _pyarrow()


def _schema(pyarrow: Any) -> Any:
    text, number = pyarrow.string(), pyarrow.float64()
    by_name = pyarrow.map_(text, number)
    return pyarrow.schema([
        *((name, text) for name in TEXTS[:7]), ("start", number), ("seconds", number), ("kept", pyarrow.bool_()),
        *((name, text) for name in TEXTS[7:]), ("score", number), ("threshold", number),
        *((name, number) for name in NUMBERS), ("cer", number), ("mos", by_name), ("extra", by_name),
    ])  # fmt: skip


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError("scores need pyarrow: pip install 'speechgpt2[data]'") from None
    return pyarrow, pyarrow.parquet
