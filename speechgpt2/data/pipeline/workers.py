"""Processes that take clips through stages, and may die of one without harm.

    with Workers(stages, workspace, count=2) as workers:
        workers.submit(Task(clip, stage=0))
        for done in workers.collect(): ...          # done.results, done.clips

A decoder that crashes or stalls on a hostile file takes a worker with it: the clip is rejected, the worker replaced.
With `count=0` the work is done in the calling process, which then has no such protection.
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

from speechgpt2.data.pipeline.results import Result
from speechgpt2.data.pipeline.sound import Sound, Workspace
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.pipeline.wire import Change, difference
from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError
from speechgpt2.processes import single_threaded

PATIENCE = 1800.0  # seconds for one task; at 60 times real time that is 30 hours of sound
DETAIL = 300  # characters of an error that are kept


@dataclass(frozen=True)
class Task:
    """Take `clip` through the stages from number `stage` on."""

    clip: Clip
    stage: int


@dataclass(frozen=True)
class Done:
    """What a task led to: results to file, and `clips` that wait for the stage number `stage`.

    `fault` is set where a stage failed in a way that is nobody's decision (a crash, a bug, a server that does not
    answer): the clip counts as rejected in this run, nothing is filed, and the next run tries again.
    """

    task: Task
    results: tuple[Result, ...] = ()
    clips: tuple[Clip, ...] = ()
    stage: int = 0
    fault: str = ""


class Crew(Protocol):
    """Who does a run's work: processes of this machine (`Workers`), or of a cluster (cluster.py)."""

    @property
    def idle(self) -> int:
        """How many tasks can be submitted now."""
        ...

    @property
    def busy(self) -> bool: ...

    def submit(self, task: Task) -> None: ...

    def collect(self) -> list[Done]:
        """Wait for one task at least, and return those that are done. Errors: `UserError` that a stage raised."""
        ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def run(task: Task, stages: Sequence[Stage[Any]], workspace: Workspace) -> Done:
    """Take a clip through stages until it is rejected, falls into several, or has passed the last."""
    clip = task.clip
    results: list[Result] = []
    sound = Sound(clip, workspace)
    for number in range(task.stage, len(stages)):
        stage = stages[number]
        if clip.audio != sound.info:
            sound = sound.of(clip)
        begun = time.perf_counter()
        try:
            changes, refusal = _changes(clip, stage(clip, sound)), None
        except Rejected as error:
            changes, refusal = (), _refusal(stage, error)
        except UserError:
            raise
        except Exception as error:  # whatever a decoder or a model throws at us must not end the run
            fault = f"{stage.name}: {type(error).__name__}: {error}"[:DETAIL]
            return Done(task, tuple(results), (clip,), number, fault)
        taken = (time.perf_counter() - begun) * 1000
        following = [replace(clip, **change) for change in changes]
        seconds = clip.audio.duration or sum(made.audio.duration for made in following)  # of a file, once it is known
        results.append(Result(stage.key(clip), stage.name, changes, refusal, taken, seconds))
        if len(following) != 1:
            return Done(task, tuple(results), tuple(following), number + 1)
        clip = following[0]
    return Done(task, tuple(results), (clip,), len(stages))


def _changes(clip: Clip, made: Clip | Sequence[Clip]) -> tuple[Change, ...]:
    """What a stage made of a clip, as the file of results will give it back, to the last digit."""
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
    """Work until the other end is closed, by an orderly end or by the parent's death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Done | UserError = run(task, stages, workspace)
        except UserError as error:
            answer = error
        try:
            pipe.send(answer)
        except OSError:
            return


class Workers:
    """`count` processes with the same stages; see the module's text."""

    def __init__(
        self, stages: Sequence[Stage[Any]], workspace: Workspace, count: int | None = None, patience: float = PATIENCE
    ):
        self._stages, self._workspace, self._patience = stages, workspace, patience
        count = (os.cpu_count() or 1) if count is None else count
        self._workers = [_Worker(stages, workspace) for _ in range(count)]
        self._inline: list[Task] = []

    def __enter__(self) -> Workers:
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
        return bool(self._inline) or any(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        if not self._workers:
            self._inline.append(task)
            return
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.deadline = task, time.monotonic() + self._patience
        with suppress(OSError):  # it has died before it began; `collect` sees its end
            worker.pipe.send(task)

    def collect(self) -> list[Done]:
        """Wait for one task at least, and return those that are done. Errors: `UserError` that a stage raised."""
        if not self._workers:
            tasks, self._inline = self._inline, []
            return [run(task, self._stages, self._workspace) for task in tasks]
        done: list[Done] = []
        while not done and self.busy:
            working = {worker.pipe: worker for worker in self._workers if worker.task is not None}
            nearest = min(worker.deadline for worker in working.values())
            ready = multiprocessing.connection.wait(list(working), max(0.0, nearest - time.monotonic()))
            done += [self._answer(working[pipe]) for pipe in ready]  # type: ignore[index]
            late = [w for w in working.values() if w.task is not None and w.deadline <= time.monotonic()]
            done += [self._lost(worker, f"no end within {self._patience:g} s") for worker in late]
        return done

    def _answer(self, worker: _Worker) -> Done:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker, "the worker's process died of it")
        worker.task = None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _lost(self, worker: _Worker, fault: str) -> Done:
        """A worker that died or does not answer: a new one takes its place."""
        assert worker.task is not None
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._stages, self._workspace)
        return Done(worker.task, (), (worker.task.clip,), worker.task.stage, fault)
