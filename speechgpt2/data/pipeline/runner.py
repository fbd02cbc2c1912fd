"""A run: clips through all steps. It can be interrupted at any moment, and always ends with the same bytes.

    with PipelineRun(source, out, steps) as run:
        run.process(workers=2)            # after a kill, run it again: it continues
        summary = output.write(run)       # shards, scores, rejected records

A step is a stage (cached by key, in worker processes) or a global step (cheap, over all clips, computed in every run).
A group of stages is first *computed*, in any order, until the database has all results. Then the results are *applied*
in the order of the clips, from the database only. So the output depends neither on speed nor on interruptions.
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

from speechgpt2.data.pipeline import input_clips, serialization, takedown
from speechgpt2.data.pipeline.clip_audio import Workspace
from speechgpt2.data.pipeline.global_steps import GlobalStep
from speechgpt2.data.pipeline.results import Result, Results
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.pipeline.workers import LocalWorkers, Task, TaskResult, WorkerPool
from speechgpt2.data.record import Clip, Decision, Source
from speechgpt2.errors import UserError
from speechgpt2.hub import sha256_of

AnyStep = Stage[Any] | GlobalStep[Any]
MakePool = Callable[[Sequence[Stage[Any]], Workspace, int | None], WorkerPool]
BATCH, MAX_DELAY = 256, 1.0  # results are stored when there are so many, or after so many seconds
FAILED, PENDING = "failed", "pending"  # temporary reasons of rejections: the next run tries again


@dataclass(frozen=True)
class Progress:
    """The running stages, and the clips and seconds of audio that have passed them."""

    stages: str
    clips: int = 0
    seconds: float = 0.0

    def passed(self, clip: Clip) -> Progress:
        """Return the progress after one more clip."""
        return Progress(self.stages, self.clips + 1, self.seconds + clip.audio.duration)


ReportProgress = Callable[[Progress], None]


class PipelineRun:
    """A run of `steps` over the clips of `source`, with all of its files in the folder `out`.

    Attributes:
        work: the folder with the run's internal files.
        workspace: its audio files.
        results: the results database.
        faults: errors of stages in this run, by the key of stage and clip.

    Raises:
        UserError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, source: Path, out: Path, steps: Sequence[AnyStep]):
        self.source, self.out, self.steps = source, out, list(steps)
        self.work = out / "work"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be used as a folder ({error.strerror})") from None
        self.workspace = Workspace(input_clips.root_of(source), self.work)
        self.faults: dict[str, str] = {}
        self._done_file, self._digest = self.work / "done", ""
        self._lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another process uses this folder") from None
        self.results = Results(self.work / "results.db")
        for pattern in ("audio/.*", "[0-9][0-9].jsonl", "*.part", "shards/*.part"):  # of a run that was killed
            for leftover in self.work.glob(pattern):
                leftover.unlink(missing_ok=True)

    def __enter__(self) -> PipelineRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.results.close()
        self._lock.close()

    @property
    def clips_file(self) -> Path:
        """The file with the clips after the last step, kept and rejected, one JSON line each."""
        return self.work / "clips.jsonl"

    @property
    def identity(self) -> str:
        """Hash of the steps, with their versions and settings."""
        return hashlib.sha256("\n".join(step.identity for step in self.steps).encode()).hexdigest()

    def process(
        self,
        workers: int | None = None,
        report: ReportProgress | None = None,
        compute: bool = True,
        pool: MakePool = LocalWorkers,
    ) -> bool:
        """Process all clips by all steps.

        Args:
            workers: number of workers; one per processor if None.
            report: called with the progress.
            compute: if False, use stored results only; clips without one are rejected as "pending".
            pool: creates the workers: local processes, or those of a cluster (cluster.py).

        Returns:
            False if the same steps have completed for the same clips before.
        """
        self.results.take_down(takedown.taken_down(self.source), self.work / "audio")
        current = self.work / "00.jsonl"
        serialization.write(current, input_clips.read(self.source, self.results))
        self._digest = f"{self.identity} {sha256_of(current)}"
        if self.clips_file.exists() and self._done_file.exists() and self._done_file.read_text() == self._digest:
            current.unlink()
            return False
        self._done_file.unlink(missing_ok=True)
        for number, group in enumerate(_groups(self.steps), 1):
            following = self.work / f"{number:02d}.jsonl"
            if isinstance(group, GlobalStep):
                serialization.write(following, group(partial(serialization.read, current)))
            else:
                if compute:
                    self._compute(group, current, partial(pool, group, self.workspace, workers), report)
                serialization.write(following, self._apply_results(group, serialization.read(current)))
            current.unlink()
            current = following
        os.replace(current, self.clips_file)
        return True

    def mark_done(self) -> None:
        """Record that everything was written: the next run with the same clips and steps has nothing to do."""
        scratch = self._done_file.with_suffix(".part")
        scratch.write_text(self._digest)
        os.replace(scratch, self._done_file)

    def clips(self) -> Iterator[Clip]:
        """Yield the clips after the last step."""
        return serialization.read(self.clips_file)

    def _compute(
        self, stages: list[Stage[Any]], source: Path, make_pool: Callable[[], WorkerPool], report: ReportProgress | None
    ) -> None:
        """Store the results of all stages for all clips, in any order."""
        tasks, unsaved = _TaskQueue(serialization.read(source)), _UnsavedResults(self.results)
        progress = Progress(" → ".join(stage.name for stage in stages))
        with _LazyPool(make_pool) as pool:
            while tasks.left or pool.busy:
                while pool.idle and (task := tasks.take()) is not None:
                    remaining = self._skip_stored(task, stages, tasks)
                    if remaining is None:
                        progress = progress.passed(task.clip)
                    else:
                        pool.submit(remaining)
                for result in pool.collect() if pool.busy else ():
                    unsaved.add(result)
                    self._follow_up(result, stages, tasks)
                    progress = progress.passed(result.task.clip)
                unsaved.save_if_due()
                if report is not None:
                    report(progress)
        unsaved.save()

    def _skip_stored(self, task: Task, stages: list[Stage[Any]], tasks: _TaskQueue) -> Task | None:
        """Skip the stages with stored results; if one splits the clip, its parts become tasks.

        Returns:
            The task from the first stage without a result on; None if there is no such stage.
        """
        clip = task.clip
        for number in range(task.stage, len(stages)):
            result = self.results.get(stages[number].key(clip))
            if result is None:
                return Task(clip, number)
            outputs = result.clips(clip)
            if len(outputs) != 1:
                tasks.add(outputs, number + 1)
                return None
            clip = outputs[0]
        return None

    def _follow_up(self, result: TaskResult, stages: list[Stage[Any]], tasks: _TaskQueue) -> None:
        """Add the tasks that follow from a result, or note its fault."""
        if result.fault:
            clip = result.clips[0]
            self.faults[stages[result.stage].key(clip).hex()] = result.fault
        elif result.stage < len(stages):
            tasks.add(result.clips, result.stage)

    def _apply_results(self, stages: list[Stage[Any]], clips: Iterable[Clip]) -> Iterator[Clip]:
        """Apply stored results in the order of the clips."""
        for clip in clips:
            if clip.kept:
                yield from self._apply_to(clip, stages)
            else:
                yield clip

    def _apply_to(self, clip: Clip, stages: list[Stage[Any]]) -> Iterator[Clip]:
        pending = [(clip, 0)]
        while pending:
            clip, number = pending.pop()
            if number == len(stages):
                yield clip
                continue
            stage = stages[number]
            key = stage.key(clip)
            result = self.results.get(key)
            if result is None or result.rejection is not None:
                rejection = self._rejection_without_result(stage, key) if result is None else result.rejection
                assert rejection is not None
                yield replace(clip, decisions=(*clip.decisions, rejection))
                continue
            keep = Decision(stage.name, stage.version, True, stage.config_hash)
            decisions = (*clip.decisions, keep)
            pending += [(replace(out, decisions=decisions), number + 1) for out in reversed(result.clips(clip))]

    def _rejection_without_result(self, stage: Stage[Any], key: bytes) -> Decision:
        fault = self.faults.get(key.hex())
        reason = FAILED if fault else PENDING
        return Decision(stage.name, stage.version, False, stage.config_hash, reason, detail=fault or "")


class _TaskQueue:
    """The tasks of a group of stages: those that follow from results come first, then the clips of a file."""

    def __init__(self, clips: Iterable[Clip]):
        self._following: list[Task] = []  # the last comes first
        self._inputs = (Task(clip, 0) for clip in clips if clip.kept)
        self._more_inputs = True

    @property
    def left(self) -> bool:
        """Whether there may be a task."""
        return bool(self._following) or self._more_inputs

    def add(self, clips: Sequence[Clip], stage: int) -> None:
        """Add tasks for `clips`, from a stage on. They come next, in their order."""
        self._following += [Task(clip, stage) for clip in reversed(clips)]

    def take(self) -> Task | None:
        """Take the next task, if there is one."""
        if self._following:
            return self._following.pop()
        task = next(self._inputs, None)
        self._more_inputs = task is not None
        return task


class _UnsavedResults:
    """Results of stages that are stored together: when there are many, or after a while."""

    def __init__(self, results: Results):
        self._results, self._unsaved = results, list[tuple[Result, Source]]()
        self._saved_at = time.monotonic()

    def add(self, result: TaskResult) -> None:
        self._unsaved += [(stage_result, result.task.clip.source) for stage_result in result.results]

    def save_if_due(self) -> None:
        late = bool(self._unsaved) and time.monotonic() - self._saved_at > MAX_DELAY
        if late or len(self._unsaved) >= BATCH:
            self.save()

    def save(self) -> None:
        self._results.add(self._unsaved)
        self._unsaved, self._saved_at = [], time.monotonic()


class _LazyPool(AbstractContextManager["_LazyPool"]):
    """Workers that start with the first task: a run that has everything stored starts no process."""

    def __init__(self, make_pool: Callable[[], WorkerPool]):
        self._make_pool = make_pool
        self._pool: WorkerPool | None = None

    @property
    def idle(self) -> int:
        return 1 if self._pool is None else self._pool.idle

    @property
    def busy(self) -> bool:
        return self._pool is not None and self._pool.busy

    def submit(self, task: Task) -> None:
        self._pool = self._pool or self._make_pool()
        self._pool.submit(task)

    def collect(self) -> list[TaskResult]:
        assert self._pool is not None
        return self._pool.collect()

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.__exit__(*error)


def _groups(steps: Sequence[AnyStep]) -> Iterator[list[Stage[Any]] | GlobalStep[Any]]:
    """Group consecutive stages; a global step stands alone."""
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
