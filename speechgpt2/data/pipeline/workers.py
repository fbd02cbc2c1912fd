"""Worker processes that take clips through stages, and may crash without further harm.

    with LocalWorkers(stages, workspace, count=2) as workers:
        workers.submit(Task(clip, stage=0))
        for done in workers.collect(): ...          # done.results, done.clips

If a decoder crashes or stalls on a hostile file, its worker ends: the clip is rejected, the worker replaced. With
`count=0` the calling process does the work, without this protection.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.pipeline.results import Result
from speechgpt2.data.pipeline.serialization import Change, difference
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError
from speechgpt2.processes import single_threaded

TASK_TIMEOUT = 1800.0  # seconds for one task; at 60 times real time that is 30 hours of audio
DETAIL = 300  # characters of an error message that are kept


@dataclass(frozen=True)
class Task:
    """Take `clip` through the stages, from number `stage` on."""

    clip: Clip
    stage: int


@dataclass(frozen=True)
class TaskResult:
    """The result of a task: results to store, and `clips` that wait for the stage number `stage`.

    `fault` is set if a stage failed without a decision (a crash, a bug, an unreachable server). Then the clip counts as
    rejected in this run, nothing is stored, and the next run tries again.
    """

    task: Task
    results: tuple[Result, ...] = ()
    clips: tuple[Clip, ...] = ()
    stage: int = 0
    fault: str = ""


class WorkerPool(Protocol):
    """The workers of a run: processes of this machine (`LocalWorkers`) or of a cluster (cluster.py)."""

    @property
    def idle(self) -> int:
        """How many tasks can be submitted now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a task is in progress."""
        ...

    def submit(self, task: Task) -> None:
        """Start a task; only while `idle` is positive."""
        ...

    def collect(self) -> list[TaskResult]:
        """Wait for one task at least, and return those that are done. Errors: `UserError` that a stage raised."""
        ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def run(task: Task, stages: Sequence[Stage[Any]], workspace: Workspace) -> TaskResult:
    """Take a clip through stages until it is rejected, split, or has passed the last one."""
    clip = task.clip
    results: list[Result] = []
    clip_audio = ClipAudio(clip, workspace)
    for number in range(task.stage, len(stages)):
        stage = stages[number]
        if clip.audio != clip_audio.info:
            clip_audio = clip_audio.for_clip(clip)
        begun = time.perf_counter()
        try:
            changes, refusal = _changes(clip, stage(clip, clip_audio)), None
        except Rejected as error:
            changes, refusal = (), _refusal(stage, error)
        except UserError:
            raise
        except Exception as error:  # no exception of a decoder or a model may end the run
            fault = f"{stage.name}: {type(error).__name__}: {error}"[:DETAIL]
            return TaskResult(task, tuple(results), (clip,), number, fault)
        taken = (time.perf_counter() - begun) * 1000
        following = [replace(clip, **change) for change in changes]
        seconds = clip.audio.duration or sum(made.audio.duration for made in following)  # of a file, after decoding
        results.append(Result(stage.key(clip), stage.name, changes, refusal, taken, seconds))
        if len(following) != 1:
            return TaskResult(task, tuple(results), tuple(following), number + 1)
        clip = following[0]
    return TaskResult(task, tuple(results), (clip,), len(stages))


def _changes(clip: Clip, made: Clip | Sequence[Clip]) -> tuple[Change, ...]:
    """Return the changes that a stage made, exactly as the results database will return them."""
    return tuple(difference(clip, one) for one in ([made] if isinstance(made, Clip) else made))


def _refusal(stage: Stage[Any], error: Rejected) -> Decision:
    return Decision(
        stage.name, stage.version, False, stage.config_hash, error.reason, error.score, error.threshold, error.detail
    )


class _Worker:
    def __init__(self, stages: Sequence[Stage[Any]], workspace: Workspace):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, stages, workspace), daemon=True)
        with single_threaded():
            self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.deadline = 0.0

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, stages: Sequence[Stage[Any]], workspace: Workspace) -> None:
    """Work until the other end of the pipe is closed, by an orderly end or by the parent's death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: TaskResult | UserError = run(task, stages, workspace)
        except UserError as error:
            answer = error
        try:
            pipe.send(answer)
        except OSError:
            return


class LocalWorkers:
    """`count` processes with the same stages (see the module)."""

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        workspace: Workspace,
        count: int | None = None,
        timeout: float = TASK_TIMEOUT,
    ):
        self._stages, self._workspace, self._timeout = stages, workspace, timeout
        count = (os.cpu_count() or 1) if count is None else count
        self._workers = [_Worker(stages, workspace) for _ in range(count)]
        self._inline: list[Task] = []

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def idle(self) -> int:
        """How many tasks can be submitted now."""
        if not self._workers:
            return int(not self._inline)
        return sum(worker.task is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        """Whether a task is in progress."""
        return bool(self._inline) or any(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Start a task; only while `idle` is positive."""
        if not self._workers:
            self._inline.append(task)
            return
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.deadline = task, time.monotonic() + self._timeout
        with suppress(OSError):  # it died before it began; `collect` notices
            worker.pipe.send(task)

    def collect(self) -> list[TaskResult]:
        """Wait for one task at least, and return those that are done. Errors: `UserError` that a stage raised."""
        if not self._workers:
            tasks, self._inline = self._inline, []
            return [run(task, self._stages, self._workspace) for task in tasks]
        done: list[TaskResult] = []
        while not done and self.busy:
            working = {worker.pipe: worker for worker in self._workers if worker.task is not None}
            nearest = min(worker.deadline for worker in working.values())
            ready = multiprocessing.connection.wait(list(working), max(0.0, nearest - time.monotonic()))
            done += [self._answer(working[pipe]) for pipe in ready]  # type: ignore[index]
            late = [w for w in working.values() if w.task is not None and w.deadline <= time.monotonic()]
            done += [self._lost(worker, f"not finished within {self._timeout:g} s") for worker in late]
        return done

    def _answer(self, worker: _Worker) -> TaskResult:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker, "the worker process crashed")
        worker.task = None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _lost(self, worker: _Worker, fault: str) -> TaskResult:
        """Replace a worker that died or does not answer."""
        assert worker.task is not None
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._stages, self._workspace)
        return TaskResult(worker.task, (), (worker.task.clip,), worker.task.stage, fault)
