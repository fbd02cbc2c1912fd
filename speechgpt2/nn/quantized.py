"""Weight-only quantization: matrices as int8 or int4, products in the precision of the input.

    int8   a row is its integers times one scale
    int4   a group of 32 or 128 inputs of a row is (its integers − 8) times a scale, plus an offset

The integers are the same for every device. Files store them in the layout of PyTorch's CPU kernel for AVX-512, so that
a file can be mapped without a copy: blocks of 64 rows, in which byte j of an input holds rows j and j + 32. Other
devices change the layout when they load the integers. For many rows the matrix is dequantized in parts, because a
product in half precision is then faster.

On a CPU, products of few rows are in C where a compiler is found (`nn.native`), elsewhere PyTorch's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.errors import UserError
from speechgpt2.nn.native import NativeKernels, NativeMatrix, native_kernels
from speechgpt2.nn.rounding import Inputs, round_matrix

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")
GROUPS = (32, 128)
BLOCK = 64  # rows of a block of int4; a matrix is padded to whole blocks
QUANTIZED_AT_ONCE = 1 << 22  # most weights that are quantized together: each takes some 20 bytes meanwhile
DEQUANTIZED_AT_ONCE = 1 << 22  # most weights that are dequantized together, to limit temporary memory
MANY_ROWS = {"int8": 32, "int4": 96}  # with at least so many rows of input, dequantizing is faster
INT8_DEVICES = {  # on which PyTorch has a kernel for few rows
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", device.upper())
}
HAS_BLOCKS_OF_64 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@dataclass(frozen=True)
class Quantization:
    """The kind of quantization of a model's matrices.

    Raises:
        UserError: If the group is none of `GROUPS`.
    """

    kind: Kind
    group: int = 32  # inputs that share a scale, in int4

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.group not in GROUPS:
            raise UserError(f"quantization must be {' or '.join(KINDS)}, in groups of {' or '.join(map(str, GROUPS))}")

    def check_divides(self, columns: int) -> None:
        """Raise `UserError` if a matrix with so many inputs does not divide into groups."""
        if self.kind == "int4" and columns % self.group:
            raise UserError(
                f"int4 in groups of {self.group} does not fit a matrix with {columns} inputs; use int8, or groups of "
                f"{' or '.join(map(str, GROUPS))} if they divide it"
            )

    def bytes_of(self, rows: int, columns: int) -> int:
        """Return the bytes of a quantized matrix `[rows, columns]`."""
        if self.kind == "int8":
            return rows * (columns + 2)
        padded = -(-rows // BLOCK) * BLOCK
        return padded * columns // 2 + padded * columns // self.group * 4


class QuantizedMatrix(NamedTuple):
    """A matrix `[rows, columns]`, [D, C].

    Attributes:
        values: int8 `[D, C]`, or uint8 `[D', C / 2]` with two int4 a byte and D padded to whole blocks.
        scales: `[D]` of int8; scales and offsets `[C / group, D', 2]` of int4.
        rows: D.
        columns: C.
    """

    values: Tensor
    scales: Tensor
    rows: int
    columns: int

    @property
    def kind(self) -> Kind:
        """Precision of the integers."""
        return "int8" if self.scales.dim() == 1 else "int4"

    @property
    def group(self) -> int:
        """Inputs that share a scale, in int4."""
        return self.columns // len(self.scales)

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales."""
        return self.values.nbytes + self.scales.nbytes

    def to(self, device: torch.device) -> QuantizedMatrix:
        """Return the matrix on another device."""
        return self._replace(values=self.values.to(device), scales=self.scales.to(device))

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows `start` to `stop` in the precision of the scales; in int4 both must be multiples of 64."""
        stop = self.rows if stop is None else min(stop, self.rows)
        if self.kind == "int8":
            return self.values[start:stop].to(self.scales.dtype) * self.scales[start:stop, None]
        padded = -(-stop // BLOCK) * BLOCK
        if (native := _native_kernels(self)) is not None:
            return native.dequantize_int4(self.values, self.scales, start, padded).t()[: stop - start]
        integers = from_blocks(self.values[start:padded]).to(self.scales.dtype) - 8  # [R, C]
        scale, offset = self.scales[:, start:padded].permute(2, 1, 0).unsqueeze(-1)  # [R, C / group, 1]
        grouped = integers.view(len(integers), -1, self.group)
        return torch.addcmul(offset, grouped, scale).flatten(1)[: stop - start]

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Dequantize some rows after the others, each part with the number of its first row."""
        step = max(1, DEQUANTIZED_AT_ONCE // self.columns // BLOCK) * BLOCK
        for start in range(0, self.rows, step):
            yield start, self.dequantize(start, start + step)


def quantize(weight: Tensor, quantization: Quantization, inputs: Inputs | None = None) -> QuantizedMatrix:
    """Quantize a matrix `[D, C]`. Scales have its half precision, or bfloat16.

    Args:
        weight: The matrix.
        quantization: How.
        inputs: What is known about the activations; without it every weight is rounded to its nearest level.

    Raises:
        UserError: If C does not divide into groups.
    """
    rows, columns = weight.shape
    quantization.check_divides(columns)
    dtype = weight.dtype if weight.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    step = max(1, QUANTIZED_AT_ONCE // columns // BLOCK) * BLOCK
    # The result is allocated once: joining parts would need twice its memory.
    is_int8, padded = quantization.kind == "int8", -(-rows // BLOCK) * BLOCK
    group = columns if is_int8 else quantization.group
    if is_int8:
        values, scales = weight.new_empty(rows, columns, dtype=torch.int8), weight.new_empty(rows, dtype=dtype)
    else:
        values = weight.new_empty(padded, columns // 2, dtype=torch.uint8)
        scales = weight.new_empty(columns // group, padded, 2, dtype=dtype)
    for start in range(0, rows, step):
        part = weight.detach()[start : start + step]
        part = part if is_int8 else F.pad(part, (0, 0, 0, -len(part) % BLOCK))
        rounded, place = round_matrix(part, quantization.kind, group, dtype, inputs), slice(start, start + len(part))
        if is_int8:
            values[place], scales[place] = rounded.integers.to(torch.int8), rounded.scales[:, 0].to(dtype)
        else:
            values[place] = to_blocks((rounded.integers + 8).to(torch.uint8))
            scales[:, place] = torch.stack([rounded.scales, rounded.offsets], dim=-1).transpose(0, 1).to(dtype)
    return QuantizedMatrix(values, scales, rows, columns)


def to_blocks(integers: Tensor) -> Tensor:
    """Arrange int4 `[D, C]` (uint8, one a byte) as blocks: `[D, C / 2]`."""
    low, high = integers.view(-1, 2, BLOCK // 2, integers.shape[1]).unbind(1)
    return (low | high << 4).transpose(1, 2).reshape(len(integers), -1)


def from_blocks(values: Tensor) -> Tensor:
    """Undo `to_blocks`: `[D, C / 2]` -> `[D, C]`, one a byte."""
    rows, columns = len(values), 2 * values.shape[1]
    blocks = values.view(-1, columns, BLOCK // 2).transpose(1, 2)
    return torch.stack([blocks & 15, blocks >> 4], dim=1).reshape(rows, columns)


class QuantizedKernel(NamedTuple):
    """Multiplies by a quantized matrix and adds a bias (see `nn.linear.Kernel`).

    Attributes:
        matrix: The matrix.
        bias: `[D]`.
        arranged: Whether the integers have the layout of the device's int4 kernel instead of that of files.
        native: The matrix for products in C, with few rows.
    """

    matrix: QuantizedMatrix
    bias: Tensor | None
    arranged: bool
    native: NativeMatrix | None

    @classmethod
    def from_matrix(cls, matrix: QuantizedMatrix, bias: Tensor | None = None) -> QuantizedKernel:
        """Bring the matrix into the layout of its device's kernel."""
        bias = None if bias is None else bias.detach()
        kernels = _native_kernels(matrix)
        if kernels is not None:
            native = NativeMatrix(kernels, matrix.values, matrix.rows, matrix.scales, bias)
            return cls(matrix, bias, False, native)
        values = _arrange(matrix)
        return cls(matrix._replace(values=values), bias, values is not matrix.values, None)

    @property
    def reads_float32(self) -> bool:
        """See `nn.linear.Kernel`."""
        return self.native is not None

    def takes(self, x: Tensor) -> bool:
        """Return True: there is no other form of the matrix."""
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `x [..., C]` -> `[..., D]`."""
        flat = x.reshape(-1, x.shape[-1])
        is_few = len(flat) < MANY_ROWS[self.matrix.kind]
        if is_few and self.native is not None and not flat.requires_grad:  # PyTorch's kernels refuse gradients
            return self.native.multiply(x)
        flat = flat.to(self.matrix.scales.dtype)
        y = self._few(flat) if self.arranged or (is_few and _has_kernel(self.matrix)) else self._many(flat)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.matrix.rows)

    def _few(self, x: Tensor) -> Tensor:
        values, scales, rows, _ = self.matrix
        if self.matrix.kind == "int8":
            return torch.ops.aten._weight_int8pack_mm(x, values, scales)
        multiply = torch.ops.aten._weight_int4pack_mm if x.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
        return multiply(x, values, self.matrix.group, scales)[:, :rows]

    def _many(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, part) for _, part in self.matrix.parts()], dim=1)


def _native_kernels(matrix: QuantizedMatrix) -> NativeKernels | None:
    """Return the kernels in C if they can read a matrix. A tensor of another class may have no memory (FakeTensor)."""
    is_in_memory = type(matrix.values) is Tensor and matrix.values.device.type == "cpu"
    return native_kernels() if is_in_memory and matrix.scales.dtype == torch.bfloat16 else None


def _has_kernel(matrix: QuantizedMatrix) -> bool:
    """Return whether PyTorch has a kernel for the layout of files."""
    device = matrix.values.device.type
    return device in INT8_DEVICES if matrix.kind == "int8" else device == "cpu" and HAS_BLOCKS_OF_64


def _arrange(matrix: QuantizedMatrix) -> Tensor:
    """Return the integers in the layout of the device's int4 kernel; if it has none, in the layout of files."""
    values = matrix.values
    if matrix.kind == "int4" and values.device.type == "cpu" and not HAS_BLOCKS_OF_64:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(from_blocks(values).int(), 1)
    if matrix.kind == "int4" and values.is_cuda and matrix.columns % 128 == 0:
        integers = from_blocks(values)
        return torch.ops.aten._convert_weight_to_int4pack(integers[:, ::2] << 4 | integers[:, 1::2], 8)
    return values


@runtime_checkable
class Quantizable(Protocol):
    """A module with matrices that can be quantized."""

    def unquantized(self) -> dict[str, Tensor]:
        """Return the matrices that are not quantized, by their names in the module."""
        ...

    def quantized(self) -> dict[str, QuantizedMatrix]:
        """Return the matrices that are quantized, by their names in the module."""
        ...

    def set_quantized(self, name: str, matrix: QuantizedMatrix) -> None:
        """Replace a matrix by its quantized form, in the layout of files."""
        ...

    def arrange(self) -> None:
        """Bring quantized matrices into the layout of their device's kernel."""
        ...


def quantizable(model: nn.Module) -> Iterator[tuple[str, Quantizable]]:
    """Iterate over the modules that can be quantized, the model first, with the prefixes of their matrices' names."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizable):
            yield f"{name}." if name else "", module


def quantize_part(module: Quantizable, name: str, quantization: Quantization) -> QuantizedMatrix:
    """Quantize one matrix of a module, which stays as it is. An embedding becomes int8: its rows are read singly."""
    kind = Quantization("int8") if isinstance(module, Embedding) else quantization
    return quantize(module.unquantized()[name], kind)


def quantize_module(module: Quantizable, name: str, quantization: Quantization, device: torch.device) -> None:
    """Replace one matrix of a module by its quantized form on `device`."""
    module.set_quantized(name, quantize_part(module, name, quantization).to(device))


class QuantizableWeight(nn.Module):
    """A module with one matrix, `weight`, which can be quantized: implements `Quantizable`."""

    weight: Tensor
    matrix: QuantizedMatrix | None = None

    def unquantized(self) -> dict[str, Tensor]:
        """Return the weight, unless it is quantized."""
        return {} if self.matrix is not None else {"weight": self.weight}

    def quantized(self) -> dict[str, QuantizedMatrix]:
        """Return the weight, if it is quantized."""
        return {} if self.matrix is None else {"weight": self.matrix}

    def set_quantized(self, name: str, matrix: QuantizedMatrix) -> None:
        """Replace the weight by its quantized form."""
        self.matrix, self.weight = matrix, released(self.weight)

    def arrange(self) -> None:
        """Leave the matrix in the layout of files."""


class Embedding(QuantizableWeight, nn.Embedding):
    """`nn.Embedding` whose table can be int8."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up `ids [...]` -> `[..., D]`."""
        if self.matrix is None:
            return super().forward(ids)
        rows = F.embedding(ids, self.matrix.values).to(self.matrix.scales.dtype)
        return rows * self.matrix.scales[ids][..., None]


class FrozenLinear(nn.Module):
    """A linear layer with a frozen quantized matrix, through which gradients pass to its input: `[..., C] -> [..., D]`.

    It is for training of other parts (QLoRA: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314). The matrix is
    dequantized in parts, again in the backward pass, and is never kept.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, matrix: QuantizedMatrix, bias: nn.Parameter | None = None):
        super().__init__()
        self.in_features, self.out_features, self.bias = matrix.columns, matrix.rows, bias
        self.register_buffer("values", matrix.values, persistent=False)  # a checkpoint holds what is trained
        self.register_buffer("scales", matrix.scales, persistent=False)

    @property
    def matrix(self) -> QuantizedMatrix:
        """The matrix, in the layout of files."""
        return QuantizedMatrix(self.values, self.scales, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., C]` to `[..., D]`."""
        y: Tensor = _FrozenProduct.apply(x, self.matrix)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _FrozenProduct(torch.autograd.Function):
    """x ↦ x Wᵀ with a quantized W, which gets no gradient. Under autocast products are in its precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: QuantizedMatrix) -> Tensor:
        ctx.matrix, ctx.dtype, device = matrix, x.dtype, x.device.type
        x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        return torch.cat([F.linear(x, part.to(x.dtype)) for _, part in matrix.parts()], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = None
        for start, part in ctx.matrix.parts():
            product = gradient[..., start : start + len(part)] @ part.to(gradient.dtype)
            total = product.float() if total is None else total.add_(product)
        assert total is not None
        return total.to(ctx.dtype), None


def quantize_model(model: nn.Module, quantization: Quantization) -> None:
    """Quantize all matrices of a model that is loaded.

    Raises:
        UserError: If a matrix does not divide into groups.
    """
    for _, module in list(quantizable(model)):
        for name, weight in module.unquantized().items():
            quantize_module(module, name, quantization, weight.device)
        module.arrange()


def released(weight: Tensor) -> nn.Parameter:
    """Return a parameter `[D, 0]` without memory, to replace a matrix `[D, C]` that is stored in another form."""
    return nn.Parameter(weight.new_empty(len(weight), 0), requires_grad=False)
