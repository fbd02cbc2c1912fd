"""Round a matrix to integers: each weight to its nearest level, or so that the outputs change least.

Weights that share a scale, a row in int8 and a group of inputs in int4, have common levels. If the activations that a
layer reads are known, inputs with much power count more when the levels are fitted, and the error of each rounded input
is made up for by the inputs that are still to be rounded (GPTQ: Frantar et al., 2022,
https://arxiv.org/abs/2210.17323).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FITS = 2  # how often the levels of int4 are fitted to the rounded weights; more gain little
INPUTS_AT_ONCE = 128  # inputs after which the error reaches all later ones, a multiple of every group
DAMPING = 0.01  # of the mean power: inputs that were never active must not take up any error
TINY = 1e-12


class Levels(NamedTuple):
    """What integers stand for: `scale [..., 1]` times an integer from `low` to `high`, plus `offset [..., 1]`."""

    scale: Tensor
    offset: Tensor
    low: int
    high: int

    def round(self, weights: Tensor) -> Tensor:
        """Return the integers of the nearest levels, as float32 `[..., N]`."""
        return ((weights - self.offset) / self.scale).round_().clamp_(self.low, self.high)

    def values(self, integers: Tensor) -> Tensor:
        """Return what `integers [..., N]` stand for."""
        return torch.addcmul(self.offset, integers, self.scale)


class Rounded(NamedTuple):
    """A rounded matrix: integers `[D, C]` (float32), scales and offsets `[D, C / group]`."""

    integers: Tensor
    scales: Tensor
    offsets: Tensor


class Inputs(NamedTuple):
    """What is known about the activations `[C]` that a matrix multiplies.

    Attributes:
        power: The mean square of each, `[C]`.
        factor: The upper Cholesky factor of the inverse of their second moments, `[C, C]`.
    """

    power: Tensor
    factor: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Inputs:
        """Prepare the second moments `[C, C]` (float32), the mean of x xᵀ over activations x."""
        power = moments.diagonal().clone()
        damped = moments + torch.diag((DAMPING * power.mean()).clamp(min=TINY).expand_as(power))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return cls(power, torch.linalg.cholesky(inverse, upper=True))


def int8_levels(weights: Tensor, power: Tensor | None, dtype: torch.dtype) -> Levels:
    """Return levels from the largest magnitude of `weights [..., N]` down to its negative; `power` has no influence."""
    scale = (weights.abs().amax(-1, keepdim=True) / 127).clamp(min=TINY).to(dtype).float()
    return Levels(scale, torch.zeros_like(scale), -127, 127)


def int4_levels(weights: Tensor, power: Tensor | None, dtype: torch.dtype) -> Levels:
    """Return levels with a small squared error for `weights [..., N]`, weighted by the `power [..., N]` of the inputs.

    Rounding and fitting alternate, as in k-means. The first levels span the range; the last ones cut off its ends.
    """
    low, high = weights.aminmax(dim=-1, keepdim=True)
    levels = _int4_through(low, -8, (high - low) / 15, dtype)
    share = torch.ones_like(weights[..., :1]) if power is None else power + TINY
    share = (share / share.mean(-1, keepdim=True)).expand_as(weights) / weights.shape[-1]
    for _ in range(FITS):
        integers = levels.round(weights)
        middle, mean = ((share * x).sum(-1, keepdim=True) for x in (integers, weights))
        steps = integers - middle
        scale = (share * steps * (weights - mean)).sum(-1, keepdim=True)
        levels = _int4_through(
            mean, middle, scale / (share * steps * steps).sum(-1, keepdim=True).clamp(min=TINY), dtype
        )
    return levels


def _int4_through(value: Tensor, integer: Tensor | int, scale: Tensor, dtype: torch.dtype) -> Levels:
    """Return levels, in numbers of `dtype`, of which `integer` stands for `value`."""
    scale = scale.clamp(min=1e-6).to(dtype).float()
    return Levels(scale, (value - integer * scale).to(dtype).float(), -8, 7)


FIND_LEVELS = {"int8": int8_levels, "int4": int4_levels}


def round_matrix(weight: Tensor, kind: str, group: int, dtype: torch.dtype, inputs: Inputs | None = None) -> Rounded:
    """Round a matrix.

    Args:
        weight: `[D, C]`.
        kind: "int8" or "int4".
        group: Inputs that share a scale, which divide C.
        dtype: Precision of scales and offsets.
        inputs: What is known about the activations; None rounds every weight to its nearest level.
    """
    find, weight = FIND_LEVELS[kind], weight.float()
    if inputs is not None:
        return _round_in_order(weight, kind, group, dtype, inputs)
    grouped = weight.unflatten(1, (-1, group))
    levels = find(grouped, None, dtype)
    return Rounded(levels.round(grouped).flatten(1), levels.scale[..., 0], levels.offset[..., 0])


def _round_in_order(weight: Tensor, kind: str, group: int, dtype: torch.dtype, inputs: Inputs) -> Rounded:
    """Round the inputs one after the other; the later ones make up for the error of each."""
    rest, factor = weight.t().contiguous(), inputs.factor  # [C, D]: the weights of an input are neighbours
    integers, all_levels = torch.empty_like(rest), []
    for start in range(0, len(rest), INPUTS_AT_ONCE):
        part = slice(start, min(start + INPUTS_AT_ONCE, len(rest)))
        block, errors, within = rest[part], torch.empty_like(rest[part]), factor[part, part]
        for i, column in enumerate(block):
            if (start + i) % group == 0:
                members = slice(start + i, start + i + group)
                levels = FIND_LEVELS[kind](rest[members].t(), inputs.power[members], dtype)
                all_levels.append(levels)
            whole = Levels(levels.scale[:, 0], levels.offset[:, 0], levels.low, levels.high)
            integers[start + i] = whole.round(column)
            errors[i] = (column - whole.values(integers[start + i])) / within[i, i]
            block[i + 1 :].addr_(within[i, i + 1 :], errors[i], alpha=-1)
        rest[part.stop :].addmm_(factor[part, part.stop :].t(), errors, alpha=-1)
    scales, offsets = ([getattr(levels, name) for levels in all_levels] for name in ("scale", "offset"))
    return Rounded(integers.t().contiguous(), torch.cat(scales, dim=1), torch.cat(offsets, dim=1))
