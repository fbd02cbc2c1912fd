"""Examples packed into the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechgpt2.lm.example import TrainingExample
from speechgpt2.types import Patches


class ExampleSource(Protocol):
    """Source of examples, see `speechgpt2.corpus.task_dataset`. `phones` are the names of the phone labels."""

    phones: tuple[str, ...]

    def example(self, random: np.random.Generator) -> TrainingExample:
        """Return a random example."""
        ...

    def held_out_texts(self) -> Sequence[str]:
        """Return texts that are not trained on."""
        ...


class Batch(NamedTuple):
    """Packed rows: `patches [B, P]`, and the other fields as in `TrainingExample`.

    `inputs` are the patches with some of the model's own codes replaced. `segments [B, P]` numbers the examples of a
    row; −1 is padding.
    """

    patches: Patches
    inputs: Patches
    segments: Tensor
    targets: Tensor
    text_loss_mask: Tensor
    code_loss_mask: Tensor
    phones: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        moved = [Patches(*(t.to(device) for t in p)) for p in (self.patches, self.inputs)]
        return Batch(*moved, *(t.to(device) for t in self[2:]))  # type: ignore[arg-type, union-attr]


@dataclass(frozen=True)
class RowBatches:
    """Makes the batches of a step. A row depends on its number among all rows of the step only.

    Attributes:
        source: Where examples come from.
        seed: Seed of the run.
        first: The number of this process's first row.
        rows: Rows of a batch.
        count: Batches of a step.
        patches: Positions of a row.
        filler: As for `pack`, and so on.
    """

    source: ExampleSource
    seed: int
    first: int
    rows: int
    count: int
    patches: int
    filler: int
    corrupted: float
    corrupted_given: float
    no_speech: int

    def __call__(self, step: int) -> list[Batch]:
        """Return the batches of a step."""
        randoms = [np.random.default_rng((self.seed, step, self.first + i)) for i in range(self.count * self.rows)]
        return [
            pack(
                self.source,
                randoms[i : i + self.rows],
                self.patches,
                self.filler,
                self.corrupted,
                self.corrupted_given,
                self.no_speech,
            )
            for i in range(0, len(randoms), self.rows)
        ]


def pack(
    source: ExampleSource,
    randoms: Sequence[np.random.Generator],
    patches: int,
    filler: int,
    corrupted: float = 0.0,
    corrupted_given: float = 0.0,
    no_speech: int = -1,
) -> Batch:
    """Fill a row of `patches` positions with whole examples for each generator. An example longer than a row is cut.

    A row depends on its generator only, so that a batch is the same on any number of processes.

    Args:
        source: Where examples come from.
        randoms: The generator of each row.
        patches: Positions of a row.
        filler: The token of padding.
        corrupted: Share of the model's own frames that are replaced in the input.
        corrupted_given: Share of the other frames of speech, such as the user's, that are replaced in the input.
        no_speech: The code of positions without speech, of which nothing is replaced.
    """
    batch = batch_of([_row(source, random, patches) for random in randoms], patches, filler)
    replaced = [
        corrupt(corrupt(c, own, corrupted, random), ~own & (c[:, 0, 0] != no_speech), corrupted_given, random)
        for c, own, random in zip(batch.patches.codes, batch.code_loss_mask, randoms)
    ]
    return batch._replace(inputs=Patches(batch.patches.text, torch.stack(replaced)))


def batch_of(rows: Sequence[Sequence[TrainingExample]], patches: int, filler: int) -> Batch:
    """Return the examples of each row as a batch of rows with `patches` positions; padding has the token `filler`."""
    text = torch.stack([_padded([e.patches.text for e in row], patches, filler) for row in rows])
    codes = torch.stack([_padded([e.patches.codes for e in row], patches, 0) for row in rows])
    return Batch(
        Patches(text, codes),
        Patches(text, codes),
        torch.stack(
            [_padded([torch.full_like(e.patches.text, i) for i, e in enumerate(row)], patches, -1) for row in rows]
        ),
        torch.stack([_padded([e.targets for e in row], patches, filler) for row in rows]),
        torch.stack([_padded([_targets(e.text_loss_mask) for e in row], patches, False) for row in rows]),
        torch.stack([_padded([_targets(e.code_loss_mask) for e in row], patches, False) for row in rows]),
        torch.stack([_padded([e.phones for e in row], patches, -1) for row in rows]),
    )


def fill_rows(examples: Iterable[TrainingExample], patches: int) -> list[list[TrainingExample]]:
    """Divide examples, in their order, into rows of at most `patches` positions. A longer example has its own row."""
    rows: list[list[TrainingExample]] = []
    filled = 0
    for example in examples:
        length = example.patches.text.shape[1]
        if not rows or filled + length > patches:
            rows.append([])
            filled = 0
        rows[-1].append(example)
        filled += length
    return rows


def corrupt(codes: Tensor, where: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Return `codes [P, G, K]` in which a share of the frames of the patches `where [P]` are permuted."""
    if not share or not where.any():
        return codes
    codes = codes.clone()
    before = codes[where]  # [N, G, K]
    frames = before.flatten(0, 1)
    swapped = frames[torch.from_numpy(random.permutation(len(frames)))]
    chosen = torch.from_numpy(random.random((len(frames), 1)) < share)
    codes[where] = torch.where(chosen, swapped, frames).view_as(before)
    return codes


def _row(source: ExampleSource, random: np.random.Generator, patches: int) -> list[TrainingExample]:
    row: list[TrainingExample] = []
    filled = 0
    while True:
        example = source.example(random)
        length = example.patches.text.shape[1]
        if filled + length > patches and row:
            return row
        row.append(example)
        filled += length


def _targets(mask: Tensor) -> Tensor:
    """Clear the first position of an example, which nothing precedes."""
    mask = mask.clone()
    mask[:, 0] = False
    return mask


def _padded(parts: list[Tensor], length: int, value: float | bool) -> Tensor:
    """Concatenate parts `[1, p, …]` and cut or pad them to `[length, …]`."""
    joined = torch.cat(parts, dim=1)[0, :length]
    fill = joined.new_full((length - len(joined), *joined.shape[1:]), value)
    return torch.cat([joined, fill])
