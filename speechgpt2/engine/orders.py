"""What a step is told, a row for every slot: one table of numbers, which reaches a device in one transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.types import Patches

POSITION, READS, DRAWS, TOP_K, SEED, TEMPERATURE, TOP_P, TEXT, CODES = range(9)  # columns; codes to the end


class Draw(NamedTuple):
    """How a slot's next patch is drawn; `fresh`: the first of a reply; `writing`: it is not within speech."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    fresh: bool
    writing: bool


class Orders(NamedTuple):
    """Of R rows: `position [R]`, which of them read and which draw, `reads, draws [R]`, the patches `given [R, 1]` to
    those that read (void elsewhere), and how the others draw.
    """

    position: Tensor
    reads: Tensor
    draws: Tensor
    given: Patches
    sampling: SamplingParams

    @classmethod
    def of(cls, table: Tensor, config: LMConfig) -> Orders:
        """Read what `write_table` wrote."""
        codes = table[:, None, CODES:].unflatten(-1, (config.patch_frames, config.codebooks))
        temperature, top_p = (_real(table[:, column]) for column in (TEMPERATURE, TOP_P))
        sampling = SamplingParams(temperature, table[:, TOP_K], top_p, table[:, SEED])
        given = Patches(table[:, TEXT, None], codes)
        return cls(table[:, POSITION], table[:, READS] != 0, table[:, DRAWS] != 0, given, sampling)


def write_table(
    positions: np.ndarray, reads: Mapping[int, Patches], draws: Mapping[int, Draw], config: LMConfig
) -> np.ndarray:
    """The table of as many slots as have `positions`, int64. A slot reads `[1, 1]`, or draws, or does nothing."""
    table = np.zeros((len(positions), CODES + config.patch_frames * config.codebooks), np.int64)
    table[:, POSITION], table[:, CODES:] = positions, config.no_speech
    for slot, patches in reads.items():
        table[slot, READS], table[slot, TEXT] = 1, int(patches.text)
        table[slot, CODES:] = patches.codes.flatten()
    for slot, draw in draws.items():
        table[slot, DRAWS], table[slot, TOP_K], table[slot, SEED] = 1, draw.top_k, draw.seed
        table[slot, [TEMPERATURE, TOP_P]] = np.array([draw.temperature, draw.top_p], np.float64).view(np.int64)
    return table


def _real(column: Tensor) -> Tensor:
    """Numbers that travelled as the bits of their float64."""
    return column.view(torch.float64).float()
