"""Matrix products with few rows, as streaming makes them: there the time is that of reading the weights, if the kernel
lets it be.

Which kernel does depends on the processor, the precision and the number of rows: for a handful of rows W·xᵀ is up to
five times as fast as x·Wᵀ, or half as fast. `FLIPPED` and `FLIPPED_HALF` are what was measured, on AMD's processors
with AVX2 and with AVX-512 and on Intel's with AMX, where a single row in half precision is best as a matrix times a
vector.

Weights that float16 holds exactly, as those of a model that is stored so, can be `pack`ed: FBGEMM's kernels read half
the bytes and compute in float32 all the same, in a third to two thirds of the time.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
HALF_IS_SLOW = AVX2  # this processor multiplies no half-precision matrices
FEW_ROWS = 8  # from here on converting a matrix to float32 costs less than multiplying it in slow half precision
MANY_ROWS = 64  # above it the order does not matter
FLIPPED = range(2, MANY_ROWS + 1) if AVX2 else range(8, MANY_ROWS + 1) if AMX else range(2, 8)  # rows, W·xᵀ is faster
FLIPPED_HALF = range(1, MANY_ROWS + 1) if AMX else range(0)


class Linear(nn.Linear):
    """`nn.Linear` that stays near the speed of memory for few rows. `[..., C] -> [..., D]`."""

    packed: torch.ScriptObject | None = None

    def pack(self) -> None:
        self.packed = packed(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: torch.ScriptObject | None = None) -> Tensor:
    """`F.linear` by the fastest order of multiplication: `x [..., C]`, `weight [D, C]` -> `[..., D]`.

    `packed`: weight and bias once more, which are read instead unless gradients are wanted.
    """
    rows = x.numel() // x.shape[-1]
    if weight.is_cuda or rows > MANY_ROWS or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
    if packed is not None and rows and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return torch.ops.quantized.linear_dynamic_fp16(x, packed)
    half = weight.dtype != torch.float32
    if half and HALF_IS_SLOW:
        if rows < FEW_ROWS:
            return F.linear(x, weight, bias)
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(weight.dtype)
    if rows not in (FLIPPED_HALF if half else FLIPPED):
        return F.linear(x, weight, bias)
    x, shape = x.reshape(-1, x.shape[-1]).contiguous(), x.shape  # of other strides all that follows is slow
    y = weight.mv(x[0]) if rows == 1 else (weight @ x.t()).t().contiguous()
    return (y if bias is None else y + bias).reshape(*shape[:-1], len(weight))


@runtime_checkable
class Packable(Protocol):
    """A module with matrices of its own to pack."""

    def pack(self) -> None: ...


def pack(model: nn.Module) -> None:
    """Pack what can be packed, on a CPU. For a model that will not be trained any more: what is packed stays so."""
    for module in model.modules():
        if isinstance(module, Packable):
            module.pack()


def packed(weight: Tensor, bias: Tensor | None = None) -> torch.ScriptObject | None:
    """`weight [D, C]` for FBGEMM; None unless float16 holds it exactly and this processor has these kernels."""
    if weight.is_cuda or weight.dtype != torch.float32 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    if not torch.equal(weight.half().float(), weight):
        return None
    return torch.ops.quantized.linear_prepack_fp16(weight.detach(), None if bias is None else bias.detach())
