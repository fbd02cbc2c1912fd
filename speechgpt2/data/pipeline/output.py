"""What a run leaves: shards of kept clips, scores of all, rejected records.

    out/shar/            cuts and recordings (shar.py)
    out/scores.parquet   what was measured (scores.py)
    out/rejected.jsonl   rejected records, with the decision that rejected each
    out/work/            results by key, standard recordings: delete it, and the next run computes everything again

All of it is a function of the clips and the steps alone: no times, no places, nothing of how the run went.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from speechgpt2.data.pipeline import scores, shar
from speechgpt2.data.pipeline.runner import FAULT, PENDING, Run, write_clips

SHAR, SCORES, REJECTED = "shar", "scores.parquet", "rejected.jsonl"


@dataclass
class Summary:
    """Counts and seconds of what a run led to; `reasons` maps a reason to both."""

    kept: int = 0
    seconds: float = 0.0
    reasons: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    @property
    def unfinished(self) -> int:
        """Clips that the next run tries again."""
        return sum(self.reasons.get(reason, (0, 0.0))[0] for reason in (FAULT, PENDING))


def write(run: Run, shard: int = shar.SHARD) -> Summary:
    """Write everything. Needs the extra `data` (pyarrow)."""
    scores.write(run.clips(), run.out / SCORES, run.work)
    shar.write((clip for clip in run.clips() if clip.kept), run.workspace, run.out / SHAR, run.work / "shards", shard)
    write_clips(run.work / "rejected.part", run.out / REJECTED, (clip for clip in run.clips() if not clip.kept))
    summary = summarise(run)
    if not summary.unfinished:
        run.mark_done()
    return summary


def summarise(run: Run) -> Summary:
    """Count what the run led to."""
    summary, counts, seconds = Summary(), Counter[str](), defaultdict[str, float](float)
    for clip in run.clips():
        refusal = clip.refusal
        if refusal is None:
            summary.kept += 1
            summary.seconds += clip.audio.duration
        else:
            counts[refusal.reason] += 1
            seconds[refusal.reason] += clip.audio.duration
    summary.reasons = {reason: (counts[reason], seconds[reason]) for reason in sorted(counts)}
    return summary
