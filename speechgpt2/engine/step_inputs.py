"""The inputs of a step of the language model: one table, a row for every slot, one transfer to the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.lm.config import LMConfig, SamplingConfig
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.types import Patches

# Columns of the table. The codes fill the rest of a row. A step writes the log-probability, text and codes it samples.
POSITION, PREFILLS, SAMPLES, TOP_K, SEED, TEMPERATURE, TOP_P, LOG_PROB, TEXT, CODES = range(10)


class SampleParams(NamedTuple):
    """How a slot's next patch is sampled.

    Attributes:
        temperature: See `lm.sampling`, and so `top_k`, `top_p`, `seed`.
        first: Whether it is the first patch of a reply.
        writing: Whether it is text without speech.
        allowed: The text tokens that may be sampled, as bits `[W]` int32 (`lm.grammar`); None: all.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    first: bool
    writing: bool
    allowed: np.ndarray | None = None

    @classmethod
    def from_settings(
        cls, settings: SessionSettings, default: SamplingConfig, first: bool, writing: bool, allowed: np.ndarray | None
    ) -> SampleParams:
        """Sample as a session's settings say, and as the model does by default where they say nothing."""
        return cls(
            default.temperature if settings.temperature is None else settings.temperature,
            default.top_k if settings.top_k is None else settings.top_k,
            default.top_p if settings.top_p is None else settings.top_p,
            settings.seed,
            first,
            writing,
            allowed,
        )


class StepInputs(NamedTuple):
    """The inputs of R rows.

    Attributes:
        position: Patches that each row holds, `[R]`.
        prefills: Rows that read a given patch, `[R]` bool.
        samples: Rows that sample a patch and read it, `[R]` bool.
        patches: The given patches `[R, 1]`; undefined in other rows.
        log_probs: Where the log-probabilities of sampled text are written, `[R]` (`float_bits`).
        sampling: Parameters of the rows that sample.
    """

    position: Tensor
    prefills: Tensor
    samples: Tensor
    patches: Patches
    log_probs: Tensor
    sampling: SamplingParams

    @classmethod
    def from_table(cls, table: Tensor, config: LMConfig) -> StepInputs:
        """Read a table that `write_table` wrote, `[R, columns]`. `patches` and `log_probs` are views of it."""
        codes = table[:, None, CODES:].unflatten(-1, (config.patch_frames, config.codebooks))
        temperature, top_p = (_as_float(table[:, column]) for column in (TEMPERATURE, TOP_P))
        sampling = SamplingParams(temperature, table[:, TOP_K], top_p, table[:, SEED])
        patches = Patches(table[:, TEXT, None], codes)
        prefills, samples = table[:, PREFILLS] != 0, table[:, SAMPLES] != 0
        return cls(table[:, POSITION], prefills, samples, patches, table[:, LOG_PROB], sampling)


def write_table(
    positions: np.ndarray, prefill: Mapping[int, Patches], sample: Mapping[int, SampleParams], config: LMConfig
) -> np.ndarray:
    """Write the table of a step.

    Args:
        positions: Patches that each row holds, `[R]`.
        prefill: Patches `[1, 1]` to read, by slot.
        sample: How other slots sample. All remaining slots are idle.
        config: The model's configuration.

    Returns:
        `[R, columns]` int64. Floats are stored as the bits of their float32.
    """
    table = np.zeros((len(positions), CODES + config.patch_frames * config.codebooks), np.int64)
    table[:, POSITION], table[:, CODES:] = positions, config.no_speech
    for slot, patches in prefill.items():
        table[slot, PREFILLS], table[slot, TEXT] = 1, int(patches.text)
        table[slot, CODES:] = patches.codes.flatten()
    for slot, params in sample.items():
        table[slot, SAMPLES], table[slot, TOP_K], table[slot, SEED] = 1, params.top_k, params.seed
        table[slot, [TEMPERATURE, TOP_P]] = np.array([params.temperature, params.top_p], np.float32).view(np.int32)
    return table


def float_bits(values: Tensor) -> Tensor:
    """Return the bits of float32 values as int64."""
    return values.view(torch.int32).long()


def bits_to_float(bits: np.ndarray) -> list[float]:
    """Undo `float_bits`."""
    floats: list[float] = bits.astype(np.int32).view(np.float32).tolist()
    return floats


def _as_float(column: Tensor) -> Tensor:
    return column.int().view(torch.float32)
