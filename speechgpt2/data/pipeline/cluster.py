"""The workers of a run on Ray Data: on this machine, or on the cluster that `RAY_ADDRESS` names.

    run.process(workers=8, pool=RayWorkers)              # sg2 data clean … --ray

The stages are the same, and so are the output bytes, since these come from the results database (runner.py). Tasks
are sent in waves, each a dataset. Every actor has one worker process of workers.py, which may crash on a clip without
further harm. All machines must see the run's folder and its sources under the same path. Ray's dashboard and usage
statistics stay off.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from speechgpt2.data.pipeline.clip_audio import Workspace
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.pipeline.workers import LocalWorkers, Task, TaskResult, WorkerPool
from speechgpt2.errors import UserError

WAVE = 4096  # most tasks of a dataset, and most tasks that wait for the next one
BLOCKS = 256  # most blocks of a dataset; an actor processes a block at a time
OBJECTS = 256 << 20  # bytes of the object store: records are small, audio stays in files


class RayWorkers(WorkerPool):
    """A pool of `count` actors. Raises `UserError` without Ray."""

    def _start(self, count: int | None) -> None:
        self._ray, self._started = _connect(count)
        self._count = count or int(self._ray.cluster_resources().get("CPU", 1))
        absolute = Workspace(self._workspace.sources.resolve(), self._workspace.folder.resolve())
        self._arguments = (self._stages, absolute, self._timeout)
        self._queue: list[Task] = []
        self._wave: Iterator[dict[str, Any]] | None = None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wave = None
        if self._started:
            self._ray.shutdown()

    @property
    def idle(self) -> int:
        return WAVE - len(self._queue)

    @property
    def busy(self) -> bool:
        return bool(self._queue) or self._wave is not None

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def collect(self) -> list[TaskResult]:
        while self.busy:
            if self._wave is None:
                tasks, self._queue = self._queue, []
                self._wave = iter(self._dataset(tasks).iter_rows())
            row = next(self._wave, None)
            if row is not None:
                answer = pickle.loads(row["done"])
                if isinstance(answer, UserError):
                    raise answer
                return [answer]
            self._wave = None
        return []

    def _dataset(self, tasks: list[Task]) -> Any:
        rows = [{"task": pickle.dumps(task)} for task in tasks]
        dataset = self._ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
        pool = self._ray.data.ActorPoolStrategy(size=min(self._count, len(rows)))
        return dataset.map(_Actor, fn_constructor_args=self._arguments, compute=pool, num_cpus=1)


class _Actor:
    """One worker process on any machine. It maps a row with a pickled task to a row with the pickled result."""

    def __init__(self, stages: Sequence[Stage[Any]], workspace: Workspace, timeout: float):
        self._workers = LocalWorkers(stages, workspace, 1, timeout)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._workers.submit(pickle.loads(row["task"]))
        try:
            answer: TaskResult | UserError = self._workers.collect()[0]
        except UserError as error:
            answer = error
        return {"done": pickle.dumps(answer)}


def _connect(count: int | None) -> tuple[Any, bool]:
    """Connect to Ray. Returns the module `ray`, and whether this process started Ray."""
    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads these when it is loaded
    if not on_cluster:  # Ray has no authentication: with this setting it listens on the loopback interface only
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("Ray is missing: pip install 'speechgpt2[ray]'") from None
    started = not ray.is_initialized()
    local: dict[str, Any] = {
        "address": "local", "num_cpus": count, "object_store_memory": OBJECTS, "include_dashboard": False,
    }  # fmt: skip
    if started:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if on_cluster else local))
        except Exception as error:  # Ray has no exception class for an unreachable cluster
            raise UserError(f"Ray cannot be used: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray, started
