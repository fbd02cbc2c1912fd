"""Matrix products with few rows, as streaming makes them: there the time is that of reading the weights, if the kernel
lets it be.

Which kernel does depends on the processor, the precision and the number of rows: for a handful of rows W·xᵀ is up to
five times as fast as x·Wᵀ, or half as fast. `FLIPPED` and `FLIPPED_HALF` are the numbers of rows for which it was the
faster, on AMD's processors with AVX2 and with AVX-512 and on Intel's with AMX, where a single row in half precision is
best as a matrix times a vector.

A model that is done with learning can be `pack`ed, and then computes without gradients only. Weights that float16
holds exactly, up to a power of two, as those of a model that is stored in half precision of either kind, are read as
such by FBGEMM's kernels, which compute in float32 all the same: at the speed of memory for a row or a few. Other large
ones, and those of bfloat16 models that work on more rows at once, are laid out for oneDNN, which then reads them two to
three times as fast. Large ones are not kept twice.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
PROCESSOR = "amx" if AMX else "avx2" if AVX2 else "avx512"
HALF_IS_SLOW = AVX2  # this processor multiplies no half-precision matrices
FEW_ROWS = 8  # from here on converting a matrix to float32 costs less than multiplying it in slow half precision
MANY_ROWS = 64  # above it the order does not matter
FLIPPED = {"avx2": range(2, MANY_ROWS + 1), "avx512": range(2, 8), "amx": range(8, MANY_ROWS + 1)}[PROCESSOR]
FLIPPED_HALF = range(1, MANY_ROWS + 1) if AMX else range(0)
LARGE = 1 << 18  # weights that pay to be laid out anew
A_ROW_OR_A_FEW = 3  # up to here FBGEMM reads a matrix faster than oneDNN multiplies it in bfloat16
HALF_EXPONENT = 15  # float16 holds what is smaller than two to this power


class Kernel(Protocol):
    """A matrix and its bias, packed."""

    def takes(self, x: Tensor) -> bool:
        """Whether it can multiply `x`, of which no gradient may be wanted."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


class HalfKernel(NamedTuple):
    """FBGEMM's: float16 weights, float32 arithmetic. `unit [1]` (float32): what the packed weights are multiples of;
    None: they are the weights.
    """

    packed: torch.ScriptObject
    unit: Tensor | None

    def takes(self, x: Tensor) -> bool:
        return not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        scaled = x.float() if self.unit is None else x * self.unit
        return torch.ops.quantized.linear_dynamic_fp16(scaled, self.packed).to(x.dtype)


class BlockedKernel(NamedTuple):
    """oneDNN's: weights in its own order."""

    packed: Tensor
    bias: Tensor | None

    def takes(self, x: Tensor) -> bool:
        return x.dtype == self.packed.dtype and not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear` that stays near the speed of memory for few rows. `[..., C] -> [..., D]`."""

    packed: Kernel | None = None

    def pack(self, rows: int, half: bool) -> None:
        if self.packed is None:
            self.packed = packed(self.weight, self.bias, rows, half)
        if self.packed is not None and self.weight.numel() >= LARGE:
            self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Kernel | None = None) -> Tensor:
    """`F.linear` by the fastest order of multiplication: `x [..., C]`, `weight [D, C]` -> `[..., D]`.

    `packed`: weight and bias, which are read in their place unless gradients are wanted.
    """
    rows = x.numel() // x.shape[-1]
    if not rows:
        return x.new_zeros(*x.shape[:-1], len(weight))
    if packed is not None and packed.takes(x):
        return packed(x)
    if weight.is_cuda or rows > MANY_ROWS or weight.dtype != x.dtype:
        return F.linear(x, weight, bias)
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

    def pack(self, rows: int, half: bool) -> None: ...


def pack(model: nn.Module, rows: int = 1, half: bool = True) -> None:
    """Pack what can be packed, on a CPU, for products of mostly `rows` rows; `half`: also what float16 holds.

    For a model that will neither be trained nor saved nor moved any more, and only be run under `torch.no_grad` or
    `torch.inference_mode`.
    """
    for module in reversed(list(model.modules())):  # parts before the whole, which may look at them
        if isinstance(module, Packable):
            module.pack(rows, half)


def packed(weight: Tensor, bias: Tensor | None = None, rows: int = 1, half: bool = True) -> Kernel | None:
    """`weight [D, C]` and its bias for the kernel that this processor multiplies `rows` rows fastest with; None if none
    is better than torch's own.
    """
    if weight.device.type != "cpu":
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if half and (weight.dtype == torch.float32 or HALF_IS_SLOW or rows <= A_ROW_OR_A_FEW):
        kernel = _half_kernel(weight, bias)
        if kernel is not None:
            return kernel
    fits = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not HALF_IS_SLOW)
    if weight.numel() >= LARGE and fits and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return BlockedKernel(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FEW_ROWS), bias)
    return None


def _half_kernel(weight: Tensor, bias: Tensor | None) -> HalfKernel | None:
    """None if float16 does not hold the weights exactly, not even as multiples of a power of two."""
    if "fbgemm" not in torch.backends.quantized.supported_engines or not weight.numel():
        return None
    weight, bias = weight.float(), None if bias is None else bias.float()
    exponent = 0
    if not _is_half(weight):
        exponent = HALF_EXPONENT - math.frexp(float(weight.abs().max()))[1]
        weight = weight * 2.0**exponent
        if not _is_half(weight):
            return None
    unit = torch.tensor([2.0**-exponent]) if exponent else None
    return HalfKernel(torch.ops.quantized.linear_prepack_fp16(weight, bias), unit)


def _is_half(weight: Tensor) -> bool:
    return torch.equal(weight.half().float(), weight)
