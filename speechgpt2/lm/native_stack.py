"""A decoder stack in one call of the kernels in C (`nn.native`), for chunks of few positions.

A step of one stream is some hundred products with a vector. Between them PyTorch would call a thousand operations, each
of which costs more to call than to compute. Results do not depend on how positions are cut into chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from speechgpt2.lm.rotary import rotary
from speechgpt2.nn.linear import Linear, native_matrix
from speechgpt2.nn.native import VECTOR, NativeKernels, StoredMatrix, native_kernels
from speechgpt2.streaming import Cache

if TYPE_CHECKING:
    from speechgpt2.lm.backbone import DecoderLayer, DecoderStack

FEW_POSITIONS = 16  # of all rows together; with more, products take nearly all of the time


class _Layer(ctypes.Structure):
    """`Layer` of nn/kernels/decoder.c."""

    _fields_ = (
        *((name, StoredMatrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "ffn_norm", "q_norm", "k_norm")),
    )


class _Decoder(ctypes.Structure):
    """`Decoder` of nn/kernels/decoder.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("layer_count", "width", "heads", "kv_heads", "head_width", "ffn")),
        ("eps", ctypes.c_float),
    )


class _Chunk(ctypes.Structure):
    """`Chunk` of nn/kernels/decoder.c."""

    _fields_ = (
        *((name, ctypes.POINTER(ctypes.c_long)) for name in ("rows", "positions")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        ("caches", ctypes.POINTER(ctypes.c_void_p)),
        *((name, ctypes.c_long) for name in ("count", "row_stride", "head_stride")),
    )


class NativeStack:
    """The layers and the final norm of a packed `DecoderStack`."""

    def __init__(self, stack: DecoderStack, kernels: NativeKernels):
        """Note where the weights are. Every matrix must have a kernel in C, and norms must be float32."""
        config, (matrices, norms) = stack.config, _parts(stack)
        self.config, self.kernels = config, kernels
        # What is read is kept, but not the stack, which keeps this object.
        self._kept = [native_matrix(matrix) for matrix in matrices], [norm.weight for norm in norms]
        layers = [_layer_of(cast("DecoderLayer", layer)) for layer in stack.layers]
        self._layers = (_Layer * len(layers))(*layers)
        sizes = (len(layers), config.width, config.heads, config.kv_heads, config.head_dim, config.ffn)
        self._decoder = _Decoder(self._layers, stack.norm.weight.data_ptr(), *sizes, config.norm_eps)
        self._address = ctypes.addressof(self._decoder)
        self._scratch_size = kernels.scratch_size(self._address)

    @classmethod
    def of(cls, stack: DecoderStack) -> NativeStack | None:
        """Return None if a layer of the packed stack has no kernel in C."""
        kernels, config = native_kernels(), stack.config
        matrices, norms = _parts(stack)
        fits = all(size % VECTOR == 0 for size in (config.width, config.head_dim, config.ffn))
        fits = fits and all(native_matrix(matrix) is not None for matrix in matrices)
        fits = fits and all(norm.weight.dtype == torch.float32 for norm in norms)
        return cls(stack, kernels) if fits and kernels is not None else None

    def takes(self, x: Tensor, caches: Sequence[Cache]) -> bool:
        """Return whether it can process `x [B, P, D]`, which has not too many positions."""
        fits = x.dtype == torch.float32 and x.shape[0] * x.shape[1] <= FEW_POSITIONS and not torch.is_grad_enabled()
        return fits and all(cache.keys.dtype == torch.float32 for cache in caches)

    def __call__(self, x: Tensor, position: Tensor, lengths: Tensor | None, caches: Sequence[Cache]) -> Tensor:
        """Process a chunk.

        Args:
            x: `[B, P, D]`.
            position: Position of each row before the chunk, `[B]`.
            lengths: Valid positions of each row, `[B]`; None: all.
            caches: Keys and values of the layers; those of the chunk are written.

        Returns:
            Hidden states after the final norm, `[B, P, D]`; past a length they are zero.
        """
        batch, steps, _ = x.shape
        counts = [steps] * batch if lengths is None else lengths.tolist()
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        index = [row * steps + i for row, count in enumerate(counts) for i in range(count)]
        start = position.tolist()
        positions = [start[row] + i for row, count in enumerate(counts) for i in range(count)]
        is_whole = len(rows) == batch * steps
        flat = x.flatten(0, 1)
        y = flat.clone() if is_whole else flat[index]
        self._process(y, rows, positions, caches)
        if is_whole:
            return y.view_as(x)
        out = torch.zeros_like(flat)
        out[index] = y
        return out.view_as(x)

    def _process(self, x: Tensor, rows: list[int], positions: list[int], caches: Sequence[Cache]) -> None:
        """Process `x [N, D]` in place, whose entries are at `positions` of `rows`."""
        count = len(rows)
        cos, sin = rotary(torch.tensor([positions]), self.config)
        pointers = [cells.data_ptr() for cache in caches for cells in cache]
        row_stride, head_stride, *_ = caches[0].keys.stride()
        chunk = _Chunk(
            (ctypes.c_long * count)(*rows),
            (ctypes.c_long * count)(*positions),
            cos.data_ptr(),
            sin.data_ptr(),
            (ctypes.c_void_p * len(pointers))(*pointers),
            count,
            row_stride,
            head_stride,
        )
        scratch = x.new_empty(count * self._scratch_size)
        threads = torch.get_num_threads()
        self.kernels.decode(self._address, ctypes.addressof(chunk), x.data_ptr(), scratch.data_ptr(), threads)


def _parts(stack: DecoderStack) -> tuple[list[Linear], list[nn.RMSNorm]]:
    modules = list(stack.modules())
    return [m for m in modules if isinstance(m, Linear)], [m for m in modules if isinstance(m, nn.RMSNorm)]


def _layer_of(layer: DecoderLayer) -> _Layer:
    attention, ffn = layer.attention, layer.ffn
    matrices = [_struct(part) for part in (attention.qkv, attention.out, ffn.gate_up, ffn.down)]
    norms = (layer.attention_norm, layer.ffn_norm, attention.q_norm, attention.k_norm)
    gains = (None if norm is None else norm.weight.data_ptr() for norm in norms)
    return _Layer(*matrices, *gains)


def _struct(linear: Linear) -> StoredMatrix:
    matrix = native_matrix(linear)
    assert matrix is not None
    return matrix.struct
