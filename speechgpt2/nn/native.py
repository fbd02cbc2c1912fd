"""Kernels in C (kernels/) for a step of few rows on a processor with AVX2: products, a decoder, a codec's streams.

Products read weights as they are stored, in half precision or as integers, and take hardly longer than reading them.
The other kernels replace small operations, up to a whole decoder, by one call: there a call costs more than what it
computes. The system's C compiler builds them once, in two seconds, into the cache folder. Without a compiler, on other
processors, or with `SG2_NATIVE=0`, PyTorch's operations are used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechgpt2 import download, hub
from speechgpt2.errors import UserError
from speechgpt2.streaming import Cache

SOURCES = Path(__file__).with_name("kernels")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
CPU_INFO = Path("/proc/cpuinfo")  # a library for one processor may not run on another
NEEDED = {"avx2", "f16c", "fma"}
SECONDS = 60  # for the compiler
VECTOR = 8  # numbers that are computed together
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # of a matrix; uint8 holds two int4
PANEL_TYPES = {torch.float32: 4, torch.bfloat16: 5}  # of a matrix in panels
PANEL = 32  # rows of a panel

log = logging.getLogger(__name__)


class NativeKernels:
    """The compiled kernels. All tensors are contiguous and on the CPU."""

    def __init__(self, path: Path):
        """Load a library. Raises OSError if that is impossible."""
        library = ctypes.CDLL(str(path))
        self.multiply = _declare(library.multiply, pointers=3, sizes=2)
        self.multiply_bfloat16 = _declare(library.multiply_bfloat16, pointers=3, sizes=2)
        self._best_panels: int = library.best_panels()
        self.decode = _declare(library.decode, pointers=4)
        self.scratch_size = library.scratch_size
        self.scratch_size.argtypes, self.scratch_size.restype = [ctypes.c_void_p], ctypes.c_long
        self._dequantize_int4 = _declare(library.dequantize_int4, pointers=3, sizes=5)
        self._extend = _declare(library.extend, pointers=3, sizes=5, numbers=1)
        self._depthwise_norm = _declare(library.depthwise_norm, pointers=5, sizes=5, numbers=1)
        self._attend_ring = _declare(library.attend_ring, pointers=7, sizes=7)

    def in_panels(self, weight: Tensor) -> Tensor | None:
        """Arrange `weight [D, C]` in panels: `[D / 32, C / w, 32, w]`, w being 1 in float32 and 2 in bfloat16.

        Returns:
            The panels; None if this processor has no product with them, or the weight does not divide into them.
        """
        (rows, columns), width = weight.shape, 4 // weight.dtype.itemsize
        if PANEL_TYPES.get(weight.dtype, self._best_panels + 1) > self._best_panels or rows % PANEL or columns % width:
            return None
        return weight.view(rows // PANEL, PANEL, columns // width, width).transpose(1, 2).contiguous()

    def dequantize_int4(self, values: Tensor, scales: Tensor, start: int, stop: int) -> Tensor:
        """Dequantize rows `start` to `stop`, multiples of 64, of a matrix -> `[C, stop − start]` bfloat16."""
        groups, padded, _ = scales.shape
        columns = 2 * values.shape[1]
        y = scales.new_empty(columns, stop - start)
        sizes = (start, stop, padded, columns, columns // groups)
        self._dequantize_int4(*_pointers(values, scales, y), *sizes, torch.get_num_threads())
        return y

    def extend(self, x: Tensor, tail: Tensor, slope: float) -> Tensor:
        """Put `tail [B, P, D]` before the leaky ReLU of `x [B, T, D]`: `[B, P + T, D]`; D is a multiple of 8."""
        x, tail, (batch, steps, width) = x.contiguous(), tail.contiguous(), x.shape
        y = x.new_empty(batch, tail.shape[1] + steps, width)
        sizes = (batch, steps, tail.shape[1], width, _half(x))
        self._extend(*_pointers(x, tail, y), *sizes, slope, torch.get_num_threads())
        return y

    def depthwise_norm(self, x: Tensor, tail: Tensor, taps: Tensor, rest: Tensor, eps: float) -> Tensor:
        """Compute a depthwise convolution and the layer norm of its output.

        Args:
            x: `[B, T, D]`, float32 or bfloat16; D is a multiple of 8.
            tail: The inputs before it, `[B, P, D]`.
            taps: The convolution's weights, `[P + 1, D]` float32.
            rest: Bias of the convolution, gain and bias of the norm, `[3, D]` float32.
            eps: Of the norm.

        Returns:
            `[B, T, D]`.
        """
        x, tail, (batch, steps, width) = x.contiguous(), tail.contiguous(), x.shape
        y = torch.empty_like(x)
        sizes = (batch, steps, tail.shape[1], width, _half(x))
        self._depthwise_norm(*_pointers(x, tail, taps, rest, y), *sizes, eps, torch.get_num_threads())
        return y

    def attend_ring(
        self, heads: Tensor, cos: Tensor, sin: Tensor, cache: Cache, position: Tensor, context: int
    ) -> Tensor:
        """Attend with a chunk to a ring (nn/ring.py), all in float32 or all in bfloat16 but for the rotation.

        Args:
            heads: Queries, keys and values before their rotation, `[B, T, 3, H, d]`; d is a multiple of 8.
            cos: Cosines of the pairs, `[B, T, d / 2]` float32.
            sin: Sines, the same.
            cache: Keys and values; those of the chunk are written.
            position: Steps before the chunk, `[B]` (int64).
            context: Steps that a query sees.

        Returns:
            `[B, T, H · d]`.
        """
        heads, (batch, steps, _, count, width) = heads.contiguous(), heads.shape
        y = heads.new_empty(batch, steps, count * width)
        pointers = _pointers(heads, cos.contiguous(), sin.contiguous(), *cache, y, position.contiguous())
        sizes = (batch, steps, count, cache.keys.shape[2], context, width, _half(heads))
        self._attend_ring(*pointers, *sizes, torch.get_num_threads())
        return y


class StoredMatrix(ctypes.Structure):
    """`Matrix` of kernels/products.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("group", ctypes.c_long),
        ("type", ctypes.c_long),
        ("unit", ctypes.c_float),
    )


class NativeMatrix:
    """A matrix `[D, C]` and a bias, for products with few rows."""

    def __init__(
        self,
        kernels: NativeKernels,
        values: Tensor,
        rows: int,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        unit: float = 1.0,
    ):
        """Prepare products.

        Args:
            kernels: The kernels.
            values: `[D, C]` float16, bfloat16 or int8, int4 in the layout of `nn.quantized`, or panels.
            rows: D.
            scales: Of int8 and int4 (bfloat16).
            bias: `[D]`.
            unit: By which half precision is multiplied, a power of two.
        """
        is_int4, is_panels = values.dtype == torch.uint8, values.dim() == 4
        columns = 2 * values.shape[1] if is_int4 else values.numel() // rows
        group = columns // len(scales) if scales is not None and is_int4 else columns
        kind = (PANEL_TYPES if is_panels else TYPES)[values.dtype]
        bias = None if bias is None else bias.float().contiguous()
        self.rows, self.kernels = rows, kernels
        self.tensors = (values, scales, bias)  # kept as long as they are read
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in self.tensors)
        self.struct = StoredMatrix(*pointers, rows, columns, group, kind, unit)
        self._address = ctypes.addressof(self.struct)

    def multiply(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Multiply `x [..., C]` and add the bias: `[..., D]`, with sums in float32.

        With panels, `gelu` applies GELU. Inputs in another precision than float32 and bfloat16 are widened before.
        """
        wide = (x if x.dtype in (torch.float32, torch.bfloat16) else x.float()).contiguous()
        y = wide.new_empty(*x.shape[:-1], self.rows)
        multiply = self.kernels.multiply_bfloat16 if wide.dtype == torch.bfloat16 else self.kernels.multiply
        count = x.numel() // x.shape[-1]
        multiply(self._address, wide.data_ptr(), y.data_ptr(), count, gelu, torch.get_num_threads())
        return y.to(x.dtype)


def _half(x: Tensor) -> int:
    """Return 1 for bfloat16, else 0."""
    return int(x.dtype == torch.bfloat16)


def _declare(function: Any, pointers: int, sizes: int = 0, numbers: int = 0) -> Any:
    """Declare the arguments of a function in C: pointers, sizes, numbers, and the count of threads."""
    types = [(ctypes.c_void_p, pointers), (ctypes.c_long, sizes), (ctypes.c_float, numbers), (ctypes.c_int, 1)]
    function.argtypes = [kind for kind, count in types for _ in range(count)]
    function.restype = None
    return function


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@functools.cache
def native_kernels() -> NativeKernels | None:
    """Return the kernels for this processor, compiled if they are not in the cache folder; None without them."""
    features = set(processor_facts().get("flags", "").split())
    if os.environ.get("SG2_NATIVE") == "0" or not features >= NEEDED:
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("no C compiler: PyTorch's kernels are used, which are slower")
        return None
    try:
        source = b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir()))
        key = hashlib.sha256(source + " ".join([compiler, *FLAGS, *sorted(features)]).encode())
        path = download.cache_folder() / "native" / f"{key.hexdigest()[:16]}.so"
        if not path.exists():
            build(path, compiler)
        return NativeKernels(path)
    except (OSError, UserError, subprocess.SubprocessError) as error:
        log.warning(f"cannot use {SOURCES.name}: PyTorch's slower kernels are used ({_reason(error)})")
        return None


def kernels_for(x: Tensor, width: int, half: bool = False) -> NativeKernels | None:
    """Return the kernels if they can compute from `x`, in vectors of `width` numbers; None if PyTorch has to.

    Only the kernels of a codec's streams take bfloat16, if `half`.
    """
    fits = x.dtype == torch.float32 or (half and x.dtype == torch.bfloat16)
    fits = fits and x.device.type == "cpu" and width % VECTOR == 0 and not torch.is_grad_enabled()
    return native_kernels() if fits else None


def build(path: Path, compiler: str = "cc", flags: Sequence[str] = FLAGS) -> None:
    """Compile the library.

    Raises:
        subprocess.SubprocessError: If the compiler fails.
        UserError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def compile_to(scratch: Path) -> None:
        command = [compiler, *flags, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(scratch), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)

    hub.write_atomically(path, compile_to)


def processor_facts() -> dict[str, str]:
    """Return what Linux says of the first processor ("model name", "flags", …); nothing on another system."""
    if not CPU_INFO.exists():
        return {}
    lines = (line.partition(":") for line in CPU_INFO.read_text().partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
