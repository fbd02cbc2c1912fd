"""Worker processes that take clips through stages, and may crash without further harm.

    with LocalWorkers(stages, workspace, count=2) as workers:
        workers.submit(Task(clip, stage=0))
        for result in workers.collect(): ...        # result.results, result.clips

If a decoder crashes or stalls on a hostile file, its worker ends: the clip is rejected, the worker replaced. With
`count=0` the calling process does the work, without this protection.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

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
    """Process `clip` by the stages, from the index `stage` on."""

    clip: Clip
    stage: int


@dataclass(frozen=True)
class TaskResult:
    """The result of a task: stage results to store, and `clips` that wait for the stage with the index `stage`.

    `fault` is set if a stage failed without a decision (a crash, a bug, an unreachable server). Then the clip counts as
    rejected in this run, nothing is stored, and the next run tries again.
    """

    task: Task
    results: tuple[Result, ...] = ()
    clips: tuple[Clip, ...] = ()
    stage: int = 0
    fault: str = ""


class WorkerPool(ABC):
    """The workers of a run: processes of this machine (`LocalWorkers`) or of a cluster (cluster.py).

    Args:
        stages: The stages that a clip passes.
        workspace: Where the clips' files are.
        count: Number of workers; None: one per processor.
        timeout: Seconds for one task.
    """

    def __init__(
        self,
        stages: Sequence[Stage[Any]],
        workspace: Workspace,
        count: int | None = None,
        timeout: float = TASK_TIMEOUT,
    ):
        self._stages, self._workspace, self._timeout = list(stages), workspace, timeout
        self._start(count)

    def __enter__(self) -> WorkerPool:
        return self

    @abstractmethod
    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    @abstractmethod
    def _start(self, count: int | None) -> None:
        """Start the workers."""

    @property
    @abstractmethod
    def idle(self) -> int:
        """Number of tasks that can be submitted now."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a task is in progress."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Start a task; only while `idle` is positive."""

    @abstractmethod
    def collect(self) -> list[TaskResult]:
        """Wait for at least one task, and return those that are done. Raises the `UserError` of a stage."""


def run(task: Task, stages: Sequence[Stage[Any]], workspace: Workspace) -> TaskResult:
    """Process a clip by the stages until it is rejected, split, or has passed the last one."""
    clip = task.clip
    results: list[Result] = []
    clip_audio = ClipAudio(clip, workspace)
    for number in range(task.stage, len(stages)):
        stage = stages[number]
        if clip.audio != clip_audio.info:
            clip_audio = clip_audio.for_clip(clip)
        begun = time.perf_counter()
        try:
            changes, rejection = _changes(clip, stage(clip, clip_audio)), None
        except Rejected as error:
            changes, rejection = (), _rejection(stage, error)
        except UserError:
            raise
        except Exception as error:  # no exception of a decoder or a model may end the run
            fault = f"{stage.name}: {type(error).__name__}: {error}"[:DETAIL]
            return TaskResult(task, tuple(results), (clip,), number, fault)
        ms = (time.perf_counter() - begun) * 1000
        outputs = [replace(clip, **change) for change in changes]
        # A file's duration is known only after decoding.
        seconds = clip.audio.duration or sum(output.audio.duration for output in outputs)
        results.append(Result(stage.key(clip), stage.name, changes, rejection, ms, seconds))
        if len(outputs) != 1:
            return TaskResult(task, tuple(results), tuple(outputs), number + 1)
        clip = outputs[0]
    return TaskResult(task, tuple(results), (clip,), len(stages))


def _changes(clip: Clip, output: Clip | Sequence[Clip]) -> tuple[Change, ...]:
    """Return the changes that a stage made, exactly as the results database will return them."""
    outputs = [output] if isinstance(output, Clip) else output
    return tuple(difference(clip, changed) for changed in outputs)


def _rejection(stage: Stage[Any], error: Rejected) -> Decision:
    return Decision(
        stage.name, stage.version, False, stage.config_hash, error.reason, error.score, error.threshold, error.detail
    )


class _Worker:
    def __init__(self, stages: Sequence[Stage[Any]], workspace: Workspace):
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_pipe, stages, workspace), daemon=True)
        with single_threaded():
            self.process.start()
        child_pipe.close()
        self.task: Task | None = None
        self.deadline = 0.0

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, stages: Sequence[Stage[Any]], workspace: Workspace) -> None:
    """Work until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result: TaskResult | UserError = run(task, stages, workspace)
        except UserError as error:
            result = error
        try:
            pipe.send(result)
        except OSError:
            return


class LocalWorkers(WorkerPool):
    """`count` processes with the same stages (see the module)."""

    def _start(self, count: int | None) -> None:
        count = (os.cpu_count() or 1) if count is None else count
        self._workers = [_Worker(self._stages, self._workspace) for _ in range(count)]
        self._inline: list[Task] = []

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def idle(self) -> int:
        if not self._workers:
            return int(not self._inline)
        return sum(worker.task is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        return bool(self._inline) or any(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        if not self._workers:
            self._inline.append(task)
            return
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.deadline = task, time.monotonic() + self._timeout
        with suppress(OSError):  # the worker has died, which `collect` notices
            worker.pipe.send(task)

    def collect(self) -> list[TaskResult]:
        if not self._workers:
            tasks, self._inline = self._inline, []
            return [run(task, self._stages, self._workspace) for task in tasks]
        done: list[TaskResult] = []
        while not done and self.busy:
            working = {worker.pipe: worker for worker in self._workers if worker.task is not None}
            nearest = min(worker.deadline for worker in working.values())
            ready = multiprocessing.connection.wait(list(working), max(0.0, nearest - time.monotonic()))
            done += [self._receive(working[pipe]) for pipe in ready]  # type: ignore[index]
            late = [w for w in working.values() if w.task is not None and w.deadline <= time.monotonic()]
            done += [self._replace(worker, f"not finished within {self._timeout:g} s") for worker in late]
        return done

    def _receive(self, worker: _Worker) -> TaskResult:
        try:
            result = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker, "the worker process crashed")
        worker.task = None
        if isinstance(result, UserError):
            raise result
        return result

    def _replace(self, worker: _Worker, fault: str) -> TaskResult:
        """Replace a worker that died or does not answer; returns its task with the fault."""
        assert worker.task is not None
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._stages, self._workspace)
        return TaskResult(worker.task, (), (worker.task.clip,), worker.task.stage, fault)
