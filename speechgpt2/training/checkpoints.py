"""Checkpoints of a run: a file with whole tensors, or a folder with the shards of several processes.

    RUN/checkpoint.pt      of a run whose processes hold the whole model
    RUN/checkpoint/        of a sharded run: a file of each process (torch.distributed.checkpoint), and `progress.json`
    …-old                  the one before, in case that one is damaged

Both are replaced atomically, and both can be read by any number of processes, sharded or not. No process holds more
than its shards. The position in the data is the step: a step's rows are drawn by their number (lm/train.py).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.training import distributed

PROGRESS = "progress.json"
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


@runtime_checkable
class Sharded(Protocol):
    """A trainer whose tensors can be divided among processes."""

    def shards(self) -> dict[str, Tensor]:
        """Return all tensors that the next step depends on, by name. Loading writes into them."""
        ...

    def progress(self, step: int) -> dict[str, Any]:
        """Return what else the next step depends on, as JSON values."""
        ...


class Checkpoints:
    """The checkpoints in a run's folder."""

    def __init__(self, folder: Path):
        self.file, self.older_file = folder / "checkpoint.pt", folder / "checkpoint-old.pt"
        self.folder, self.older_folder = folder / "checkpoint", folder / "checkpoint-old"
        self._damaged: set[Path] = set()

    @property
    def found(self) -> list[Path]:
        """The checkpoints that are there, the newest first."""
        places = (self.file, self.folder, self.older_file, self.older_folder)
        return [path for path in places if path.exists()]

    def last_good(self) -> str:
        """Say which checkpoint a run can go on from."""
        return f"the last good checkpoint is {self.found[0]}" if self.found else "there is no checkpoint yet"

    def load(self, trainer: object = None) -> dict[str, Any] | None:
        """Return the last checkpoint that is whole, or None in a new run.

        Of a folder, only what `Sharded.progress` returned: the tensors are read into those of `trainer`.

        Raises:
            UserError: If all checkpoints are damaged.
            ValueError: If a folder holds other tensors than those of `trainer`.
        """
        found = self.found
        for path in found:
            try:
                return load_shards(path, trainer) if path.is_dir() else load_file(path)
            except Damaged:
                self._damaged.add(path)
                if distributed.rank() == 0:
                    print(f"{path} is damaged", file=sys.stderr)
        if found:
            raise UserError(f"{self.file.parent}: no checkpoint can be read; choose another --out to begin anew")
        return None

    def save(self, content: dict[str, Any]) -> None:
        """Write a file with `content`. Raises `UserError` if it cannot be written."""
        scratch = self.file.with_suffix(".tmp")
        try:
            with scratch.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            self._retire()
            os.replace(scratch, self.file)
        except (OSError, RuntimeError) as error:
            scratch.unlink(missing_ok=True)
            raise self._not_written(self.file, error) from None

    def save_shards(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write a folder, to which each process adds its shards. All processes call it.

        Raises:
            UserError: If it cannot be written.
        """
        scratch, leads = self.folder.with_suffix(".tmp"), distributed.rank() == 0
        if leads:
            shutil.rmtree(scratch, ignore_errors=True)
        distributed.barrier()
        try:
            _write_shards(scratch, tensors)
            if leads:
                (scratch / PROGRESS).write_text(json.dumps(progress))
                self._retire()
                os.replace(scratch, self.folder)
        except (Damaged, OSError) as error:
            raise self._not_written(self.folder, error) from None
        distributed.barrier()  # no process goes on before the checkpoint is there

    def _retire(self) -> None:
        """Rename the present checkpoint, and drop the one before; drop a damaged one, and keep the one before."""
        present = next((path for path in (self.file, self.folder) if path.exists()), None)
        if present is None:
            return
        if present in self._damaged:
            _remove(present)
            self._damaged.remove(present)
            return
        _remove(self.older_file)
        _remove(self.older_folder)
        os.replace(present, self.older_file if present == self.file else self.older_folder)

    def _not_written(self, path: Path, error: BaseException) -> UserError:
        return UserError(f"cannot write {path} ({first_line(error)}); {self.last_good()}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Damaged(Exception):
    """The shards of a checkpoint cannot be written, or are not whole."""


def load_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint file. Raises `Damaged`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise Damaged(first_line(error)) from None


def load_shards(folder: Path, trainer: object) -> dict[str, Any]:
    """Read the shards of a checkpoint into the tensors of `trainer`. All processes call it.

    Returns:
        What `Sharded.progress` returned.

    Raises:
        ValueError: If the trainer has other tensors. Nothing is changed then.
        Damaged: If a file is missing or damaged.
    """
    from torch.distributed.checkpoint import FileSystemReader

    if not isinstance(trainer, Sharded):
        raise ValueError("it is of a sharded run")
    tensors = trainer.shards()
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    except DAMAGE as error:
        raise Damaged(first_line(error)) from None
    if {name: tensor.shape for name, tensor in tensors.items()} != _shapes(stored):
        raise ValueError("it trains other parameters, or other sizes")
    _read_shards(folder, tensors)
    return progress


def _shapes(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(entry, "size", None) for name, entry in stored.items()}


def _write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as shards

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shards.save(dict(tensors), checkpoint_id=folder)
        except (shards.api.CheckpointException, *DAMAGE) as error:
            raise Damaged(first_line(error)) from None


def _read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as shards

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a process that reads alone
        try:
            shards.load(dict(tensors), checkpoint_id=folder)
        except (shards.api.CheckpointException, *DAMAGE) as error:
            raise Damaged(first_line(error)) from None


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line; of several processes, what the first one says."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return (str(error).splitlines() or [type(error).__name__])[0]
