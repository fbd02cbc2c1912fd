"""The inputs of a step of the language model, a row for every slot: one table, one transfer to the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.types import Patches

# Columns of the table. The codes fill the rest of a row.
POSITION, PREFILLS, SAMPLES, TOP_K, SEED, TEMPERATURE, TOP_P, TEXT, CODES = range(9)


class SampleParams(NamedTuple):
    """How a slot's next patch is sampled.

    Attributes:
        temperature: See `lm.sampling`, and so `top_k`, `top_p`, `seed`.
        first: Whether it is the first of a reply.
        writing: Whether it is text, outside of speech.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    first: bool
    writing: bool


class StepInputs(NamedTuple):
    """The inputs of R rows.

    Attributes:
        position: Patches that each row has taken in, `[R]`.
        prefills: Which rows take in a given patch, `[R]` bool.
        samples: Which rows sample one, `[R]` bool.
        patches: The given patches `[R, 1]`; void in other rows.
        sampling: How the others sample.
    """

    position: Tensor
    prefills: Tensor
    samples: Tensor
    patches: Patches
    sampling: SamplingParams

    @classmethod
    def from_table(cls, table: Tensor, config: LMConfig) -> StepInputs:
        """Views of a table that `write_table` wrote, `[R, columns]`."""
        codes = table[:, None, CODES:].unflatten(-1, (config.patch_frames, config.codebooks))
        temperature, top_p = (_as_float(table[:, column]) for column in (TEMPERATURE, TOP_P))
        sampling = SamplingParams(temperature, table[:, TOP_K], top_p, table[:, SEED])
        patches = Patches(table[:, TEXT, None], codes)
        return cls(table[:, POSITION], table[:, PREFILLS] != 0, table[:, SAMPLES] != 0, patches, sampling)


def write_table(
    positions: np.ndarray, prefill: Mapping[int, Patches], sample: Mapping[int, SampleParams], config: LMConfig
) -> np.ndarray:
    """The table of a step.

    Args:
        positions: Patches that each slot has taken in, `[R]`.
        prefill: Patches `[1, 1]` that slots take in.
        sample: How other slots sample. The rest does nothing.
        config: The model's configuration.

    Returns:
        `[R, columns]` int64. Floats travel as the bits of their float64.
    """
    table = np.zeros((len(positions), CODES + config.patch_frames * config.codebooks), np.int64)
    table[:, POSITION], table[:, CODES:] = positions, config.no_speech
    for slot, patches in prefill.items():
        table[slot, PREFILLS], table[slot, TEXT] = 1, int(patches.text)
        table[slot, CODES:] = patches.codes.flatten()
    for slot, params in sample.items():
        table[slot, SAMPLES], table[slot, TOP_K], table[slot, SEED] = 1, params.top_k, params.seed
        table[slot, [TEMPERATURE, TOP_P]] = np.array([params.temperature, params.top_p], np.float64).view(np.int64)
    return table


def _as_float(column: Tensor) -> Tensor:
    return column.view(torch.float64).float()
