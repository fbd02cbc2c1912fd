"""Kernels in C (native.c) for a step of few rows on a processor with AVX2: quantized products, attention, norms.

PyTorch's own products convert every weight before they multiply; these multiply integers, and so take hardly longer
than reading the matrix. The other kernels replace up to twenty small operations by one call. The system's C compiler
builds them once, in half a second, into the cache folder. Without a compiler, on other processors, or with
`SG2_NATIVE=0`, PyTorch's operations are used.
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

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
CPU_INFO = Path("/proc/cpuinfo")  # a library for one processor may not run on another
NEEDED = {"avx2", "fma"}
SECONDS = 60  # for the compiler
VECTOR = 8  # numbers that are computed together

log = logging.getLogger(__name__)


class NativeKernels:
    """The compiled kernels. All tensors are contiguous and on the CPU."""

    def __init__(self, path: Path):
        """Load a library. Raises OSError if that is impossible."""
        library = ctypes.CDLL(str(path))
        self._int8 = _declare(library.multiply_int8, pointers=4, sizes=3)
        self._int4 = _declare(library.multiply_int4, pointers=4, sizes=4)
        self._dequantize_int4 = _declare(library.dequantize_int4, pointers=3, sizes=5)
        self._attend_step = _declare(library.attend_step, pointers=6, sizes=5)
        self._gated_silu = _declare(library.gated_silu, pointers=2, sizes=2)
        self._rms_norm = _declare(library.rms_norm, pointers=3, sizes=2, numbers=1)
        self._extend = _declare(library.extend, pointers=3, sizes=5, numbers=1)
        self._depthwise_norm = _declare(library.depthwise_norm, pointers=5, sizes=5, numbers=1)
        self._attend_ring = _declare(library.attend_ring, pointers=7, sizes=7)

    def int8(self, x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        """Multiply `x [N, C]` by a matrix: `values [D, C]` int8 and `scales [D]` bfloat16 -> `[N, D]` float32."""
        x = x.float().contiguous()
        y = x.new_empty(len(x), len(values))
        self._int8(*_pointers(x, values, scales, y), *x.shape, len(values), torch.get_num_threads())
        return y

    def int4(self, x: Tensor, values: Tensor, scales: Tensor, rows: int) -> Tensor:
        """Multiply `x [N, C]` by a matrix `[rows, C]` in the layout of `nn.quantized` -> `[N, rows]` float32."""
        x, group = x.float().contiguous(), x.shape[1] // len(scales)
        y = x.new_empty(len(x), rows)
        self._int4(*_pointers(x, values, scales, y), *x.shape, rows, group, torch.get_num_threads())
        return y

    def dequantize_int4(self, values: Tensor, scales: Tensor, start: int, stop: int) -> Tensor:
        """Dequantize rows `start` to `stop`, multiples of 64, of a matrix -> `[C, stop − start]` bfloat16."""
        groups, padded, _ = scales.shape
        columns = 2 * values.shape[1]
        y = scales.new_empty(columns, stop - start)
        sizes = (start, stop, padded, columns, columns // groups)
        self._dequantize_int4(*_pointers(values, scales, y), *sizes, torch.get_num_threads())
        return y

    def attend(self, heads: Tensor, cos: Tensor, sin: Tensor, cache: Cache, rows: Sequence[tuple[int, int]]) -> Tensor:
        """Attend one step of each of `rows` (number, position), all in float32.

        Args:
            heads: Queries, keys and values before their rotation, `[B, H + 2 Hkv, 1, d]`; d is a multiple of 8.
            cos: Cosines `[B, 1, 1, d]`.
            sin: Sines with their signs, the same.
            cache: Keys and values; those of the step are written.
            rows: The active rows. Outputs of the others are zero.

        Returns:
            `[B, H, 1, d]`.
        """
        heads, (batch, count, _, width) = heads.contiguous(), heads.shape
        kv_heads, stride = cache.keys.shape[1], cache.keys.stride(1)
        shape = (batch, queries := count - 2 * kv_heads, 1, width)
        y = heads.new_empty(shape) if len(rows) == batch else heads.new_zeros(shape)
        for row, position in rows:
            pointers = _pointers(*(tensor[row] for tensor in (heads, cos, sin, *cache, y)))
            self._attend_step(*pointers, position, queries, kv_heads, width, stride, torch.get_num_threads())
        return y

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """Normalise `x [..., D]` and multiply it by `gain [D]`, all in float32; D is a multiple of 8."""
        x, width = x.contiguous(), x.shape[-1]
        y = torch.empty_like(x)
        self._rms_norm(*_pointers(x, gain, y), x.numel() // width, width, eps, torch.get_num_threads())
        return y

    def gated_silu(self, x: Tensor) -> Tensor:
        """Split `x [..., 2 D]` into gate and up, and compute silu(gate) · up, `[..., D]`; D is a multiple of 8."""
        x, width = x.contiguous(), x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        self._gated_silu(*_pointers(x, y), y.numel() // width, width, torch.get_num_threads())
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


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _declare(function: Any, pointers: int, sizes: int, numbers: int = 0) -> Any:
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
    features = _features()
    if os.environ.get("SG2_NATIVE") == "0" or not features >= NEEDED:
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("no C compiler: PyTorch's kernels are used, which are slower")
        return None
    try:
        key = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS, *sorted(features)]).encode())
        path = download.cache_folder() / "native" / f"{key.hexdigest()[:16]}.so"
        if not path.exists():
            build(path, compiler)
        return NativeKernels(path)
    except (OSError, UserError, subprocess.SubprocessError) as error:
        log.warning(f"cannot use {SOURCE.name}: PyTorch's slower kernels are used ({_reason(error)})")
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
        command = [compiler, *flags, str(SOURCE), "-o", str(scratch), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)

    hub.write_atomically(path, compile_to)


def _features() -> set[str]:
    """Return the features of the processor, as Linux names them; nothing on another system."""
    if not CPU_INFO.exists():
        return set()
    lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() == "flags"), set())


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
