"""Batches prepared ahead of their step, by worker processes.

What a step needs follows from its number alone, so the order, a resumed run and the losses are the same with any number
of workers. A worker that dies ends the run with one line; workers end with the process that trains.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from speechgpt2.errors import UserError

T = TypeVar("T")
AHEAD = 2  # steps that each worker prepares ahead


class StepLoader(Generic[T]):
    """Gives what each step needs.

    Args:
        prepare: Makes it from the number of the step. Where processes cannot be forked it must be picklable.
        steps: Length of the run.
        workers: Processes that prepare; with 0 it is made when it is needed.
    """

    def __init__(self, prepare: Callable[[int], T], steps: int, workers: int = 0):
        self.prepare, self.steps, self.workers = prepare, steps, workers
        self.prepared: Iterator[Any] | None = None
        self.next = -1

    def take(self, step: int) -> T:
        """Return what a step needs. Steps that do not follow one another are slow.

        Raises:
            UserError: If it cannot be prepared, or a worker has died.
        """
        if not self.workers:
            return self.prepare(step)
        if self.prepared is None or self.next != step:
            self.prepared = self._start(step)
        self.next = step + 1
        try:
            found = pickle.loads(next(self.prepared))
        except RuntimeError as error:
            if "worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise UserError("a process that prepares batches has ended; go on with --resume") from None
        if isinstance(found, UserError):
            raise found
        return found

    def _start(self, step: int) -> Iterator[Any]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn about processes that are forked
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        loader: DataLoader = DataLoader(
            _Steps(self.prepare),
            batch_size=None,
            sampler=range(step, max(self.steps, step + 1)),
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            collate_fn=_unchanged,
            multiprocessing_context="fork" if can_fork else None,
            generator=torch.Generator(),  # the global one belongs to the steps
        )
        return iter(loader)


class _Steps(Dataset):
    def __init__(self, prepare: Callable[[int], Any]):
        self.prepare = prepare

    def __getitem__(self, step: int) -> bytes:
        # As bytes, because shared memory and descriptors of files are few in containers, and batches are small.
        try:
            return pickle.dumps(self.prepare(step))
        except UserError as error:  # raised where the run can report it, without the worker's traceback
            return pickle.dumps(error)


def _unchanged(value: Any) -> Any:
    return value
