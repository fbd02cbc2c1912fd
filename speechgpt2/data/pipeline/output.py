"""The output of a run: shards of kept clips, scores of all clips, rejected records.

    out/shar/            cuts and recordings (shar.py)
    out/scores.parquet   all measures (scores.py)
    out/rejected.jsonl   rejected records, with the decision that rejected each
    out/work/            cached results and standard recordings: after deletion the next run computes everything again

The output depends on the clips and the steps only, not on times, paths or interruptions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from speechgpt2.data.pipeline import scores, shar
from speechgpt2.data.pipeline.runner import FAILED, PENDING, PipelineRun
from speechgpt2.data.record import Clip

SHAR_FOLDER, SCORES_FILE, REJECTED_FILE = "shar", "scores.parquet", "rejected.jsonl"


@dataclass
class Summary:
    """Counts and seconds of a run's output; `reasons` maps a reason to both."""

    kept: int = 0
    seconds: float = 0.0
    reasons: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, clip: Clip) -> None:
        """Count a clip."""
        rejection = clip.rejection
        if rejection is None:
            self.kept += 1
            self.seconds += clip.audio.duration
        else:
            count, seconds = self.reasons.get(rejection.reason, (0, 0.0))
            self.reasons[rejection.reason] = count + 1, seconds + clip.audio.duration

    @property
    def rejected(self) -> int:
        """Number of rejected clips."""
        return sum(count for count, _ in self.reasons.values())

    @property
    def unfinished(self) -> int:
        """Number of clips that the next run tries again."""
        return sum(self.reasons.get(reason, (0, 0.0))[0] for reason in (FAILED, PENDING))


def write(run: PipelineRun, shard: int = shar.SHARD) -> Summary:
    """Write the whole output. Needs the extra `data` (pyarrow)."""
    summary = write_records(run)
    shar.write(
        (clip for clip in run.clips() if clip.kept), run.workspace, run.out / SHAR_FOLDER, run.work / "shards", shard
    )
    if not summary.unfinished:
        run.mark_done()
    return summary


def write_records(run: PipelineRun) -> Summary:
    """Write scores and rejected records: the output without audio."""
    summary, part = Summary(), run.work / "rejected.part"
    with part.open("w", encoding="utf-8", newline="\n") as rejected:
        scores.write(_counted(run.clips(), summary, rejected), run.out / SCORES_FILE, run.work)
    os.replace(part, run.out / REJECTED_FILE)
    return summary


def _counted(clips: Iterable[Clip], summary: Summary, rejected: TextIO) -> Iterator[Clip]:
    """Pass all clips on; count them, and write the rejected ones."""
    for clip in clips:
        summary.add(clip)
        if not clip.kept:
            rejected.write(clip.to_json() + "\n")
        yield clip


def summarise(run: PipelineRun) -> Summary:
    """Count the clips of a finished run."""
    summary = Summary()
    for clip in run.clips():
        summary.add(clip)
    return summary
