"""Matrix products with few rows, as in streaming. At best they take as long as reading the weights.

The fastest kernel depends on the processor, the precision and the number of rows. For a few rows W·xᵀ is up to five
times as fast as x·Wᵀ, or half as fast. `FLIPPED` and `FLIPPED_HALF` are the numbers of rows for which W·xᵀ was faster,
measured on AMD processors with AVX2 and with AVX-512 and on Intel processors with AMX. A single row in half precision
is fastest as a matrix times a vector.

A model for inference can be `pack`ed; it then computes no gradients. A weight in half precision, or one that float16
holds exactly up to a power of two, is read in half precision and multiplied in float32, for a few rows as fast as
memory can be read: by a kernel in C (`nn.native`), or by FBGEMM, which holds float16 only. Every model that is stored
in half precision has such weights. Other large weights, and those of bfloat16 models with more rows, are arranged in
panels for a kernel in C, or, for many rows, in the layout of oneDNN, which then reads them two to three times as fast.
A large weight is not kept twice.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.nn.native import NativeKernels, NativeMatrix, native_kernels
from speechgpt2.nn.quantized import QuantizableWeight, QuantizedKernel
from speechgpt2.nn.uninitialized import return_memory

AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
NO_AMX = "avx2" if AVX2 else "avx512"
PROCESSOR = "amx" if AMX else NO_AMX
HALF_IS_SLOW = AVX2  # this processor multiplies no half-precision matrices
FEW_ROWS = 8  # from here on, converting a matrix to float32 is cheaper than slow half-precision products
MANY_ROWS = 64  # above it the order does not matter
FLIPPED = {"avx2": range(2, MANY_ROWS + 1), "avx512": range(2, 8), "amx": range(8, MANY_ROWS + 1)}[PROCESSOR]
FLIPPED_HALF = range(1, MANY_ROWS + 1) if AMX else range(0)
LARGE = 1 << 18  # weights; a matrix of this size is worth packing
HUGE = 1 << 28  # larger ones stay as they are, since the matrix and its packed form are in memory together
PACKED_AT_ONCE = 1 << 24  # most weights that are packed as float16 together: each takes 10 bytes meanwhile
HALF_ROWS = 3  # usual rows up to which products in float32 are faster than oneDNN's in bfloat16
PANEL_ROWS = 16  # usual rows up to which panels are faster than oneDNN's layout
HALF_EXPONENT = 15  # float16 holds values below two to this power


class Kernel(Protocol):
    """A packed matrix and its bias."""

    @property
    def reads_float32(self) -> bool:
        """Whether the product is computed from inputs in float32, which another precision would only round."""
        ...

    def takes(self, x: Tensor) -> bool:
        """Return whether it can multiply `x`; it cannot if gradients are needed."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        ...


class HalfKernel(NamedTuple):
    """The kernel in C: weights `[D, C]` in half precision times a power of two, arithmetic in float32."""

    native: NativeMatrix

    @property
    def reads_float32(self) -> bool:
        """See `Kernel`."""
        return True

    def takes(self, x: Tensor) -> bool:
        """Return whether it can multiply `x`."""
        return not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        return self.native.multiply(x)


class FbgemmKernel(NamedTuple):
    """FBGEMM's kernel: float16 weights, arithmetic in float32.

    A large matrix is packed in parts of some rows. The weights are the packed values times `unit [1]` (float32), or the
    packed values themselves without a unit.
    """

    parts: tuple[torch.ScriptObject, ...]
    unit: Tensor | None

    @property
    def reads_float32(self) -> bool:
        """See `Kernel`."""
        return True

    def takes(self, x: Tensor) -> bool:
        """Return whether it can multiply `x`."""
        return not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        scaled = x.float() if self.unit is None else x * self.unit
        parts = [torch.ops.quantized.linear_dynamic_fp16(scaled, part) for part in self.parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


class PanelKernel(NamedTuple):
    """The kernel in C for a dozen rows: weights in panels, arithmetic in their precision, sums in float32."""

    panels: Tensor
    native: NativeMatrix

    @property
    def reads_float32(self) -> bool:
        """See `Kernel`."""
        return self.panels.dtype == torch.float32

    def takes(self, x: Tensor) -> bool:
        """Return whether it can multiply `x`."""
        return x.dtype == self.panels.dtype and not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        return self.native.multiply(x)

    def gelu(self, x: Tensor) -> Tensor:
        """Multiply, and apply GELU to what is still in the cache."""
        return self.native.multiply(x, gelu=True)


class BlockedKernel(NamedTuple):
    """oneDNN's kernel: weights in its own memory layout."""

    packed: Tensor
    bias: Tensor | None

    @property
    def reads_float32(self) -> bool:
        """See `Kernel`."""
        return self.packed.dtype == torch.float32

    def takes(self, x: Tensor) -> bool:
        """Return whether it can multiply `x`."""
        return x.dtype == self.packed.dtype and not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """Multiply, and apply GELU to what is still in the cache."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "gelu", [], "none")


class Linear(QuantizableWeight, nn.Linear):
    """`nn.Linear` that is fast for few rows: `[..., C] -> [..., D]`. It can be quantized (`nn.quantized`)."""

    packed: Kernel | None = None

    def arrange(self) -> None:
        """Bring a quantized weight into the layout of its device's kernel."""
        if self.matrix is not None:
            self.packed = QuantizedKernel.from_matrix(self.matrix, self.bias)
            self.matrix = self.packed.matrix

    def pack(self, rows: int, half: bool) -> None:
        """Pack the weight and release a large one."""
        if self.packed is None:
            self.packed = packed(self.weight, self.bias, rows, half)
        if self.packed is not None and self.weight.numel() >= LARGE:
            self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., C]` to `[..., D]`."""
        return linear(x, self.weight, self.bias, self.packed)

    def gelu(self, x: Tensor) -> Tensor:
        """Map `[..., C]` to GELU of `[..., D]`."""
        if isinstance(self.packed, (PanelKernel, BlockedKernel)) and self.packed.takes(x) and x.numel():
            return self.packed.gelu(x)
        return F.gelu(self(x))


def native_matrix(layer: Linear) -> NativeMatrix | None:
    """Return the matrix of a packed layer as the kernels in C read it; None if PyTorch multiplies by it."""
    return layer.packed.native if isinstance(layer.packed, (HalfKernel, QuantizedKernel)) else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Kernel | None = None) -> Tensor:
    """Compute `F.linear` in the fastest order of multiplication.

    Args:
        x: `[..., C]`.
        weight: `[D, C]`.
        bias: `[D]`.
        packed: The packed weight and bias, which replace the others if no gradients are needed.

    Returns:
        `[..., D]`.
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
    x, shape = x.reshape(-1, x.shape[-1]).contiguous(), x.shape  # with other strides the products are slow
    y = weight.mv(x[0]) if rows == 1 else (weight @ x.t()).t().contiguous()
    return (y if bias is None else y + bias).reshape(*shape[:-1], len(weight))


@runtime_checkable
class Packable(Protocol):
    """A module that packs its own matrices."""

    def pack(self, rows: int, half: bool) -> None:
        """Pack for `rows` rows; `half` allows float16."""
        ...


def pack(model: nn.Module, rows: int = 1, half: bool = True) -> None:
    """Pack a model's weights, on a CPU.

    Afterwards the model must not be trained, saved or moved, and runs only under `torch.no_grad` or
    `torch.inference_mode`.

    Args:
        model: The model, changed in place.
        rows: Usual number of rows of a product.
        half: Whether weights that float16 holds exactly may be packed as float16.
    """
    # Parts first, because a module may depend on how its parts are packed.
    for module in reversed(list(model.modules())):
        if isinstance(module, Packable):
            module.pack(rows, half)
            if isinstance(module, Linear) and module.weight.is_meta:
                return_memory()


def packed(weight: Tensor, bias: Tensor | None = None, rows: int = 1, half: bool = True) -> Kernel | None:
    """Pack `weight [D, C]` and its bias for the kernel that is fastest for `rows` rows on this processor.

    Returns:
        The kernel, or None if torch's own is as good.
    """
    if weight.device.type != "cpu":
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    kernel: Kernel | None = None
    if half and (weight.dtype == torch.float32 or HALF_IS_SLOW or rows <= HALF_ROWS):
        kernel = _half_kernel(weight, bias)
    has_product = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not HALF_IS_SLOW)
    if kernel is not None or not has_product or not LARGE <= weight.numel() <= HUGE:
        return kernel
    if rows <= PANEL_ROWS:
        kernel = _panel_kernel(weight, bias)
    if kernel is None and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        kernel = BlockedKernel(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FEW_ROWS), bias)
    return kernel


def _panel_kernel(weight: Tensor, bias: Tensor | None) -> PanelKernel | None:
    kernels = _native_kernels(weight)
    panels = None if kernels is None else kernels.in_panels(weight)
    if kernels is None or panels is None:
        return None
    return PanelKernel(panels, NativeMatrix(kernels, panels, len(weight), bias=bias))


def _half_kernel(weight: Tensor, bias: Tensor | None) -> HalfKernel | FbgemmKernel | None:
    """Return None if half precision does not hold the weights exactly, or no kernel reads it."""
    kernels = _native_kernels(weight)
    if kernels is None:
        return _fbgemm_kernel(weight, bias)
    if weight.dtype != torch.float32:
        return HalfKernel(NativeMatrix(kernels, weight.contiguous(), len(weight), bias=bias))
    exponent = _half_exponent(weight)
    if exponent is None:
        return None
    half = torch.mul(weight, 2.0**exponent, out=torch.empty_like(weight, dtype=torch.float16))
    return HalfKernel(NativeMatrix(kernels, half, len(half), bias=bias, unit=2.0**-exponent))


def _fbgemm_kernel(weight: Tensor, bias: Tensor | None) -> FbgemmKernel | None:
    if "fbgemm" not in torch.backends.quantized.supported_engines or weight.numel() > HUGE:
        return None
    exponent = _half_exponent(weight)
    if exponent is None:
        return None
    parts = weight.split(max(1, PACKED_AT_ONCE // weight.shape[1]))
    biases = [None] * len(parts) if bias is None else bias.float().split([len(part) for part in parts])
    kernels = [
        torch.ops.quantized.linear_prepack_fp16(part.float() * 2.0**exponent, part_bias)
        for part, part_bias in zip(parts, biases, strict=True)
    ]
    return FbgemmKernel(tuple(kernels), torch.tensor([2.0**-exponent]) if exponent else None)


def _native_kernels(weight: Tensor) -> NativeKernels | None:
    """Return the kernels in C if they can read a weight. A tensor of another class may have no memory (FakeTensor)."""
    return native_kernels() if type(weight) is Tensor else None


def _half_exponent(weight: Tensor) -> int | None:
    """Return the power of two with which float16 holds all weights exactly; None if there is none, or no weight."""
    if not weight.numel():
        return None
    parts = weight.split(max(1, PACKED_AT_ONCE // weight.shape[1]))
    if all(map(_is_half, parts)):
        return 0
    exponent = HALF_EXPONENT - math.frexp(max(map(abs, map(float, weight.aminmax()))))[1]
    return exponent if all(_is_half(part.float() * 2.0**exponent) for part in parts) else None


def _is_half(weight: Tensor) -> bool:
    return torch.equal(weight.half().float(), weight.float())
