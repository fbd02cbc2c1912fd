"""The workers of a run on Ray Data: on this machine, or on the cluster that `RAY_ADDRESS` names.

    run.process(workers=8, crew=RayWorkers)              # sg2 data clean … --ray

The stages are the same, and so are the bytes that a run writes, since those come from the file of results (runner.py).
Tasks go out in waves, each a dataset; every actor keeps one worker process of workers.py, which may die of a clip
without harm. The run's folder and its sources must lie where all machines see them under the same path. Neither a
dashboard nor usage statistics are switched on.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from speechgpt2.data.pipeline.sound import Workspace
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.pipeline.workers import PATIENCE, Done, Task, Workers
from speechgpt2.errors import UserError

WAVE = 4096  # tasks of a dataset at most, and as many wait for the next one
BLOCKS = 256  # of a dataset at most: what an actor takes and gives back at once
OBJECTS = 256 << 20  # bytes of the object store on this machine: records are small, sound goes by files


class RayWorkers:
    """A `Crew` of `count` actors, as many as there are processors if None. Errors: `UserError` without Ray."""

    def __init__(
        self, stages: Sequence[Stage[Any]], workspace: Workspace, count: int | None = None, patience: float = PATIENCE
    ):
        self._ray, self._ours = _connected(count)
        self._count = count or int(self._ray.cluster_resources().get("CPU", 1))
        place = Workspace(workspace.sources.resolve(), workspace.folder.resolve())
        self._arguments = (list(stages), place, patience)
        self._queue: list[Task] = []
        self._wave: Iterator[dict[str, Any]] | None = None

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wave = None
        if self._ours:
            self._ray.shutdown()

    @property
    def idle(self) -> int:
        """How many tasks can be submitted now."""
        return WAVE - len(self._queue)

    @property
    def busy(self) -> bool:
        return bool(self._queue) or self._wave is not None

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def collect(self) -> list[Done]:
        """Wait for one task at least, and return those that are done. Errors: `UserError` that a stage raised."""
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
        crew = self._ray.data.ActorPoolStrategy(size=min(self._count, len(rows)))
        return dataset.map(_Actor, fn_constructor_args=self._arguments, compute=crew, num_cpus=1)


class _Actor:
    """One worker process, on whatever machine; rows of a pickled task in, of what it led to out."""

    def __init__(self, stages: Sequence[Stage[Any]], workspace: Workspace, patience: float):
        self._workers = Workers(stages, workspace, 1, patience)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._workers.submit(pickle.loads(row["task"]))
        try:
            answer: Done | UserError = self._workers.collect()[0]
        except UserError as error:
            answer = error
        return {"done": pickle.dumps(answer)}


def _connected(count: int | None) -> tuple[Any, bool]:
    """Ray, and whether it was started here."""
    elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # these are read when Ray is loaded
    if not elsewhere:  # Ray asks nobody who he is; so, in spite of its name, it listens on the loopback interface only
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("Ray is missing: pip install 'speechgpt2[ray]'") from None
    ours = not ray.is_initialized()
    local: dict[str, Any] = {
        "address": "local", "num_cpus": count, "object_store_memory": OBJECTS, "include_dashboard": False,
    }  # fmt: skip
    if ours:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if elsewhere else local))
        except Exception as error:  # it has no kind of its own for a cluster that does not answer
            raise UserError(f"Ray cannot be used: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray, ours
