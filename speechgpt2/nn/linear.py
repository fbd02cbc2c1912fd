"""Matrix products with few rows, as streaming makes them: there the time is that of reading the weights, if the kernel
lets it be.

Which kernel does depends on the precision and the number of rows. Measured on processors with AVX2, with AVX-512 and
with AMX: for a handful of rows W·xᵀ is up to twice as fast as x·Wᵀ, in half precision always, in float32 from some
number of rows on; a single row in half precision is best as a matrix times a vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
HALF_IS_SLOW = AVX2  # this processor multiplies no half-precision matrices
FEW_ROWS = 8  # from here on converting a matrix to float32 costs less than multiplying it in slow half precision
FLIP_FROM = 2 if AVX2 else 8  # rows from which W·xᵀ is the faster one in float32
FLIP_TO = 64  # rows from which the order does not matter


class Linear(nn.Linear):
    """`nn.Linear` that stays near the speed of memory for few rows. `[..., C] -> [..., D]`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by the fastest order of multiplication: `x [..., C]`, `weight [D, C]` -> `[..., D]`."""
    rows = x.numel() // x.shape[-1]
    if weight.is_cuda or rows > FLIP_TO or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    half = weight.dtype != torch.float32
    if half and HALF_IS_SLOW:
        if rows < FEW_ROWS:
            return F.linear(x, weight, bias)
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(weight.dtype)
    if half and rows == 1:
        y = weight.mv(x.flatten())
    elif half or rows >= FLIP_FROM:
        y = (weight @ x.reshape(-1, x.shape[-1]).t()).t()
    else:
        return F.linear(x, weight, bias)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], len(weight))
