"""The whole run: clips through all steps, resumable at any moment, with the same bytes as its end whatever happened.

    with Run(source, out, steps) as run:
        run.process(workers=2)            # kill it, run it again: it goes on
        summary = output.write(run)       # shards, scores, rejected records

Steps are stages (cached by key, in worker processes) and surveys (cheap, over all clips, computed afresh). Each group
of stages is first *worked*, in any order, until all its results are filed; then *walked*, in the order of the clips,
from the file of results alone. What is written is made by the walk, so it cannot depend on who was faster, or on kills.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from speechgpt2.data.pipeline import intake, takedown, wire
from speechgpt2.data.pipeline.results import Result, Results
from speechgpt2.data.pipeline.sound import Workspace
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.pipeline.survey import Survey
from speechgpt2.data.pipeline.workers import Crew, Done, Task, Workers
from speechgpt2.data.record import Clip, Decision, Source
from speechgpt2.errors import UserError

Step = Stage[Any] | Survey[Any]
MakeCrew = Callable[[Sequence[Stage[Any]], Workspace, int | None], Crew]
BATCH, OVERDUE = 256, 1.0  # results that are filed at once, and seconds after which fewer are
FAULT, PENDING = "failed", "pending"  # reasons that are nobody's decision, and not for ever


@dataclass(frozen=True)
class Progress:
    """How far it is: the stages at work, clips and seconds of sound that have passed or left them so far."""

    stages: str
    clips: int
    seconds: float


Report = Callable[[Progress], None]


class Run:
    """A source, the steps, and the folder `out` in which everything lies. See the module's text."""

    def __init__(self, source: Path, out: Path, steps: Sequence[Step]):
        self.source, self.out, self.steps = source, out, list(steps)
        self.work = out / "work"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be used as a folder ({error.strerror})") from None
        self.workspace = Workspace(intake.root_of(source), self.work)
        self.faults: dict[str, str] = {}
        self._done, self._digest = self.work / "done", ""
        self._lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another run is at work in this folder") from None
        self.results = Results(self.work / "results.db")
        for pattern in ("audio/.*", "[0-9][0-9].jsonl", "*.part", "shards/*.part"):  # of a run that was killed
            for leftover in self.work.glob(pattern):
                leftover.unlink(missing_ok=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.results.close()
        self._lock.close()

    @property
    def final(self) -> Path:
        """The clips after the last step, kept and rejected, one JSON line each."""
        return self.work / "clips.jsonl"

    @property
    def identity(self) -> str:
        """Of the steps."""
        return hashlib.sha256("\n".join(step.identity for step in self.steps).encode()).hexdigest()

    def process(
        self,
        workers: int | None = None,
        report: Report | None = None,
        compute: bool = True,
        crew: MakeCrew = Workers,
    ) -> bool:
        """Take all clips through all steps; False if that was done before, to the end, with the same clips and steps.

        `crew` makes so many `workers`: processes, or a cluster's (cluster.py). With `compute=False` only results on
        file are used, and clips that lack one are rejected as "pending".
        """
        self.results.bury(takedown.taken_down(self.source), self.work / "audio")
        current = self.work / "00.jsonl"
        wire.write(current, intake.read(self.source, self.results))
        self._digest = f"{self.identity} {_digest_of(current)}"
        if self.final.exists() and self._done.exists() and self._done.read_text() == self._digest:
            current.unlink()
            return False
        self._done.unlink(missing_ok=True)
        for number, group in enumerate(_groups(self.steps), 1):
            following = self.work / f"{number:02d}.jsonl"
            if isinstance(group, Survey):
                wire.write(following, group(partial(wire.read, current)))
            else:
                if compute:
                    self._work(group, current, partial(crew, group, self.workspace, workers), report)
                wire.write(following, self._walk(group, wire.read(current)))
            current.unlink()
            current = following
        os.replace(current, self.final)
        return True

    def mark_done(self) -> None:
        """Everything has been written: the next run with the same clips and steps has nothing to do."""
        scratch = self._done.with_suffix(".part")
        scratch.write_text(self._digest)
        os.replace(scratch, self._done)

    def clips(self) -> Iterator[Clip]:
        """What `process` led to."""
        return wire.read(self.final)

    def _work(self, stages: list[Stage[Any]], source: Path, make: Callable[[], Crew], report: Report | None) -> None:
        """File the results of all stages for all clips, in any order."""
        waiting: list[Task] = []
        inputs = (Task(clip, 0) for clip in wire.read(source) if clip.kept)
        label, clips, seconds = " → ".join(stage.name for stage in stages), 0, 0.0
        fresh: list[tuple[Result, Source]] = []
        filed = time.monotonic()
        with _Lazy(make) as crew:
            more = True
            while more or waiting or crew.busy:
                while (more or waiting) and crew.idle:
                    task = waiting.pop() if waiting else next(inputs, None)
                    if task is None:
                        more = False
                        break
                    task, ended = self._follow(task, stages, waiting)
                    if ended:
                        clips, seconds = clips + 1, seconds + task.clip.audio.duration
                    else:
                        crew.submit(task)
                for done in crew.collect() if crew.busy else ():
                    fresh += [(result, done.task.clip.source) for result in done.results]
                    self._sort(done, stages, waiting)
                    clips += 1
                    seconds += done.task.clip.audio.duration
                if len(fresh) >= BATCH or (fresh and time.monotonic() - filed > OVERDUE):
                    self.results.add(fresh)
                    fresh, filed = [], time.monotonic()
                if report is not None:
                    report(Progress(label, clips, seconds))
        self.results.add(fresh)

    def _follow(self, task: Task, stages: list[Stage[Any]], waiting: list[Task]) -> tuple[Task, bool]:
        """As far as results are on file; clips that one falls into join `waiting`. True where nothing is left to do."""
        clip = task.clip
        for number in range(task.stage, len(stages)):
            result = self.results.get(stages[number].key(clip))
            if result is None:
                return Task(clip, number), False
            outputs = result.clips(clip)
            if len(outputs) != 1:
                waiting += [Task(output, number + 1) for output in reversed(outputs)]
                return task, True
            clip = outputs[0]
        return task, True

    def _sort(self, done: Done, stages: list[Stage[Any]], waiting: list[Task]) -> None:
        """What is to become of what a task led to."""
        if done.fault:
            clip = done.clips[0]
            self.faults[stages[done.stage].key(clip).hex()] = done.fault
        elif done.stage < len(stages):
            waiting += [Task(clip, done.stage) for clip in reversed(done.clips)]

    def _walk(self, stages: list[Stage[Any]], clips: Iterable[Clip]) -> Iterator[Clip]:
        """In order, from the file of results alone."""
        for clip in clips:
            if clip.kept:
                yield from self._descend(clip, stages)
            else:
                yield clip

    def _descend(self, clip: Clip, stages: list[Stage[Any]]) -> Iterator[Clip]:
        pending = [(clip, 0)]
        while pending:
            clip, number = pending.pop()
            if number == len(stages):
                yield clip
                continue
            stage = stages[number]
            key = stage.key(clip)
            result = self.results.get(key)
            if result is None or result.refusal is not None:
                refusal = self._missing(stage, key) if result is None else result.refusal
                assert refusal is not None
                yield replace(clip, decisions=(*clip.decisions, refusal))
                continue
            passed = Decision(stage.name, stage.version, True, stage.config_hash)
            decisions = (*clip.decisions, passed)
            pending += [(replace(out, decisions=decisions), number + 1) for out in reversed(result.clips(clip))]

    def _missing(self, stage: Stage[Any], key: bytes) -> Decision:
        fault = self.faults.get(key.hex())
        reason = FAULT if fault else PENDING
        return Decision(stage.name, stage.version, False, stage.config_hash, reason, detail=fault or "")


class _Lazy(AbstractContextManager["_Lazy"]):
    """Workers that are not started before there is work: a run with nothing left to do starts no process."""

    def __init__(self, make: Callable[[], Crew]):
        self._make, self._made = make, None  # type: tuple[Callable[[], Crew], Crew | None]

    @property
    def idle(self) -> int:
        return 1 if self._made is None else self._made.idle

    @property
    def busy(self) -> bool:
        return self._made is not None and self._made.busy

    def submit(self, task: Task) -> None:
        self._made = self._made or self._make()
        self._made.submit(task)

    def collect(self) -> list[Done]:
        assert self._made is not None
        return self._made.collect()

    def __exit__(self, *error: Any) -> None:
        if self._made is not None:
            self._made.__exit__(*error)


def _groups(steps: Sequence[Step]) -> Iterator[list[Stage[Any]] | Survey[Any]]:
    """Stages that follow one another, together; surveys alone."""
    stages: list[Stage[Any]] = []
    for step in steps:
        if isinstance(step, Stage):
            stages.append(step)
            continue
        if stages:
            yield stages
            stages = []
        yield step
    if stages:
        yield stages


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
