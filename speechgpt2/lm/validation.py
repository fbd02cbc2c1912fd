"""Held-out losses of the language model: of text and codes, in all and by task.

The examples of each task are packed once, without the changes to the input that training makes. In the values of all
tasks, an example counts as often as the mix draws it. So they can be compared with the losses of training, of which the
auxiliary parts (phones, drafts) are left out. Like those they are teacher-forced: `sg2 eval` judges free replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.lm.example import TrainingExample
from speechgpt2.lm.losses import LMLosses, TermWeights
from speechgpt2.lm.packing import Batch, batch_of, fill_rows
from speechgpt2.nn.precision import widest_float
from speechgpt2.training import distributed


class HeldOutTask(NamedTuple):
    """Held-out examples of one task. `share` is the probability of the task in the mix."""

    name: str
    share: float
    examples: Sequence[TrainingExample]


class HeldOutLosses:
    """Evaluates a model on held-out examples, of which each process takes a part.

    Args:
        tasks: The examples.
        rows: Rows of a batch.
        row_patches: Positions of a row.
        filler: The token of padding.
    """

    def __init__(self, tasks: Sequence[HeldOutTask], rows: int, row_patches: int, filler: int):
        self.tasks = tasks
        self.batches: list[tuple[int, Batch]] = []
        for number, task in enumerate(tasks):
            packed = fill_rows(task.examples, row_patches)
            for first in range(0, len(packed), rows):
                self.batches.append((number, batch_of(packed[first : first + rows], row_patches, filler)))

    @torch.no_grad()
    def evaluate(self, losses: LMLosses, device: torch.device) -> dict[str, float]:
        """Return the values, by name: `loss`, `text`, `codes`, `code_0` … and `TASK/text`, `TASK/codes`."""
        errors = self._errors(losses, device)
        frequencies = [task.share / len(task.examples) for task in self.tasks]
        everything = (errors * torch.tensor(frequencies, dtype=errors.dtype)[:, None]).sum(0)
        values = _means(everything, losses.weights, by_codebook=True)
        loss = losses.weights.text * values["text"] + losses.weights.codes * values.get("codes", 0.0)
        by_task = {
            f"{task.name}/{name}": value
            for task, sums in zip(self.tasks, errors)
            for name, value in _means(sums, losses.weights).items()
        }
        return {"loss": loss, **values, **by_task}

    def _errors(self, losses: LMLosses, device: torch.device) -> Tensor:
        """Return the sums of `LMLosses.errors` by task, `[tasks, 3 + K]`, in the widest type of the device."""
        world, rank = distributed.world_size(), distributed.rank()
        wide = widest_float(device)
        sums = torch.zeros(len(self.tasks), 3 + len(losses.weights.codebooks), dtype=wide, device=device)
        # All processes compute the same number of batches, since those of a sharded model compute together.
        for start in range(0, len(self.batches), world):
            is_real = start + rank < len(self.batches)
            number, batch = self.batches[start + rank if is_real else start]
            found = losses.errors(batch.to(device)).to(wide)
            if is_real:
                sums[number] += found
        return distributed.add_up(sums).cpu()


def _means(sums: Tensor, weights: TermWeights, by_codebook: bool = False) -> dict[str, float]:
    """Return mean errors of the text and the codes that there are."""
    text, tokens, codes, *each = sums.tolist()
    means = {"text": text / tokens} if tokens else {}
    if codes:
        each = [error / codes for error in each]
        means["codes"] = sum(weight * error for weight, error in zip(weights.codebooks, each))
        means |= {f"code_{k}": error for k, error in enumerate(each)} if by_codebook else {}
    return means
