"""The selection of training data: accepted licences, plausible labels, held-out speakers.

An item is refused, never repaired, if its licence is not accepted, if it is silent, or if its text is too long for its
audio: then the label is wrong. Long recordings without a transcript are cut.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from speechgpt2.corpus.data_config import ANY_LICENCE, OWN_LICENCE, SYNTHETIC_LICENCE, DataConfig
from speechgpt2.corpus.formats import DataPart, Item, Skipped
from speechgpt2.corpus.store import CorpusItem, Record
from speechgpt2.types import SAMPLE_RATE

LONGEST = 60.0  # seconds of an utterance with a transcript
CUT_SECONDS = 20.0  # a long recording without a transcript is cut into items of this length
SHORTEST = 0.2  # seconds
SILENT = 1e-4  # peak
MAX_LETTERS, MAX_HANZI = 35.0, 12.0  # characters per second, faster than anyone speaks
TIME_SLACK = 0.5  # seconds by which word times may exceed the audio


@dataclass
class Refusals:
    """Counts of refused items by reason; `examples` has the id of one item for each reason."""

    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, id: str, reason: str) -> None:
        """Count a refused item."""
        self.refused[reason] += 1
        self.examples.setdefault(reason, id)


def admitted(part: DataPart, config: DataConfig, refusals: Refusals) -> Iterator[CorpusItem]:
    """Yield the accepted items of a part, with `split` set, and count the others in `refusals`."""
    for item in _cut_long(part.read()):
        if isinstance(item, Skipped):
            refusals.add(item.id, "cannot be read")
            continue
        record = item.record
        record = replace(record, licence=record.licence or config.licence, lang=record.lang or config.lang)
        reason = _reason_to_refuse(record, item.pcm, config)
        if reason:
            refusals.add(record.id, reason)
            continue
        if not part.is_split and is_held_out(record, config.held_out):
            record = replace(record, split="test")
        yield CorpusItem(record, item.pcm, item.f0)


def is_held_out(record: Record, share: float) -> bool:
    """Return whether an item is held out from training, with all items of its dialogue, its speaker or its source."""
    if record.split == "test":
        return True
    group = record.extra.get("conversation") or record.speaker or record.source or record.id
    return zlib.crc32(group.encode()) % 10_000 < share * 10_000


def _cut_long(items: Iterable[Item]) -> Iterator[Item]:
    """Cut long recordings without a transcript."""
    size = round(CUT_SECONDS * SAMPLE_RATE)
    for item in items:
        if isinstance(item, Skipped) or item.pcm is None or item.record.text or len(item.pcm) <= 1.5 * size:
            yield item
            continue
        for number, start in enumerate(range(0, len(item.pcm), size)):
            record = replace(item.record, id=f"{item.record.id}-{number:04d}", words=(), phones=())
            yield CorpusItem(record, item.pcm[start : start + size])


def _reason_to_refuse(record: Record, pcm: np.ndarray | None, config: DataConfig) -> str:
    """Return why an item is refused; "" if it is accepted."""
    accepted = {*config.licences, OWN_LICENCE, SYNTHETIC_LICENCE}
    if ANY_LICENCE not in accepted and record.licence not in accepted:
        return f"with licence {record.licence}" if record.licence else "without a licence"
    if pcm is None:
        return "" if record.text.strip() or "tool_calls" in record.extra else "without text and audio"
    seconds = len(pcm) / SAMPLE_RATE
    if seconds < SHORTEST:
        return "too short"
    if np.abs(pcm).max() < SILENT:
        return "silent"
    if record.text and seconds > LONGEST:
        return f"longer than {LONGEST:.0f} s; cut it with `sg2 data clean`"
    if len(record.text) > (MAX_HANZI if record.lang == "zh" else MAX_LETTERS) * (seconds + TIME_SLACK):
        return "with more text than its audio can hold"
    if record.words and max(word.end for word in record.words) > seconds + TIME_SLACK:
        return "with word times past its end"
    return ""
