"""A causal, streaming transformer with a sliding window. Layout `[B, T, D]`.

A query at position p sees the keys at p − context < position ≤ p. The state carries each row's position and the last
context − 1 keys and values (already rotated) of every layer. Queries attend in blocks, so a chunk may be longer than
the window, and memory is linear in its length. Rotary angles (Su et al., 2021, https://arxiv.org/abs/2104.09864) are
formed in float64 (`nn.precision.rotary_angle`), because a stream may run for days.

There are two kinds of states. A `TransformerState` is a value, which can be kept, and the default. A `RingState`
(nn/ring.py) is written in place, which saves copying the window with every chunk; it is for inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.errors import UserError
from speechgpt2.nn.attention import attention
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.native import kernels_for
from speechgpt2.nn.precision import rotary_angle, rotary_frequencies
from speechgpt2.nn.ring import NativeRingChunk, RingChunk, RingState, newest_cells, read, ring_cells, write
from speechgpt2.streaming import Cache

QUERY_BLOCK = 256  # queries that attend together; bounds the memory of a long chunk


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes: `width` of input and output, and `context`, the steps that a step sees, itself included."""

    width: int
    heads: int
    layers: int
    ffn: int
    context: int
    rope_theta: float = 10_000.0

    FORMER_NAMES: ClassVar[dict[str, str]] = {"rope_base": "rope_theta"}

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(f"width {self.width} must divide into {self.heads} heads of even size")


class KeyValueTail(NamedTuple):
    """The newest keys and values of one layer, `[B, H, S, head_dim]` each, with S = context − 1."""

    keys: Tensor
    values: Tensor


class TransformerState(NamedTuple):
    """The steps so far, `position [B]` (int64), and the tail of each layer."""

    position: Tensor
    layers: tuple[KeyValueTail, ...]


AnyState = TransformerState | RingState
Reach = Union["WindowBlocks", RingChunk, NativeRingChunk]  # the keys that a chunk sees, in all layers
Past = KeyValueTail | Cache | None  # of a layer, before a chunk


class Transformer(nn.Module):
    """Pre-norm layers with scaled residuals, matrices without biases, no final norm: `[B, T, D] -> [B, T, D]`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def init_state(self, batch: int) -> TransformerState:
        """Return the state of `batch` rows before any input."""
        weight, c = next(self.parameters()), self.config
        shape = (batch, c.heads, c.context - 1, c.width // c.heads)
        tails = tuple(KeyValueTail(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers)
        return TransformerState(torch.zeros(batch, dtype=torch.int64, device=weight.device), tails)

    def init_ring(self, batch: int, chunk: int) -> RingState:
        """Return the state of `batch` rows before any input, to be written in place by chunks of up to `chunk` steps.

        A chunk that is not longer may be taken back: the state before it, with its position, goes on as if the chunk
        had not been. After a longer chunk, which is computed as with a `TransformerState`, no other state of the ring
        is valid any more.
        """
        weight, c = next(self.parameters()), self.config
        shape = (batch, c.heads, ring_cells(c.context, chunk), c.width // c.heads)
        layers = tuple(Cache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers)
        return RingState(torch.zeros(batch, dtype=torch.int64, device=weight.device), layers)

    def forward(self, x: Tensor, state: AnyState | None = None) -> tuple[Tensor, AnyState]:
        """Process one chunk `[B, T, D]`."""
        batch, steps, _ = x.shape
        position = state.position if state else torch.zeros(batch, dtype=torch.int64, device=x.device)
        reach: Reach
        if isinstance(state, RingState):
            if steps > state.cells - (self.config.context - 1):
                return self._long_chunk(x, state)
            reach = self._ring_chunk(x, state)
        else:
            reach = WindowBlocks.of(position, steps, self.config.context - 1 if state else 0, self.config.context)
        dtype = torch.float32 if isinstance(reach, NativeRingChunk) else x.dtype
        rotation = rotary(position, steps, self.config, dtype)
        layers = []
        for i, layer in enumerate(self.layers):
            x, past = layer(x, state.layers[i] if state else None, rotation, reach)
            layers.append(past)
        return x, (RingState if isinstance(state, RingState) else TransformerState)(position + steps, tuple(layers))

    def _ring_chunk(self, x: Tensor, state: RingState) -> RingChunk | NativeRingChunk:
        position, context = state.position, self.config.context
        kernels = kernels_for(x, self.config.width // self.config.heads, half=True)
        if kernels is not None and state.layers[0].keys.dtype == x.dtype:
            return NativeRingChunk(position, context, kernels)
        return RingChunk.at(position, x.shape[1], state.cells, context)

    def _long_chunk(self, x: Tensor, state: RingState) -> tuple[Tensor, RingState]:
        """Process a chunk that needs more cells than the ring has."""
        past = self.config.context - 1
        before = newest_cells(state.position, past, state.cells)
        tails = tuple(KeyValueTail(*read(cache, before)) for cache in state.layers)
        x, after = self(x, TransformerState(state.position, tails))
        cells = newest_cells(after.position, past, state.cells)
        for cache, tail in zip(state.layers, after.layers, strict=True):
            write(cache, cells, *tail)
        return x, RingState(after.position, state.layers)


class TransformerLayer(nn.Module):
    """x + scale · attention(norm x), then x + scale · feed-forward(norm x)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-5)
        self.attention = WindowAttention(config)
        self.attention_scale = nn.Parameter(torch.full((config.width,), 0.1))
        self.ffn_norm = nn.LayerNorm(config.width, eps=1e-5)
        self.expand = Linear(config.width, config.ffn, bias=False)
        self.project = Linear(config.ffn, config.width, bias=False)
        self.ffn_scale = nn.Parameter(torch.full((config.width,), 0.1))

    def forward(self, x: Tensor, past: Past, rotation: tuple[Tensor, Tensor], reach: Reach) -> tuple[Tensor, Past]:
        """Process one chunk `[B, T, D]`; return it and the newest keys and values."""
        y, past = self.attention(self.attention_norm(x), past, rotation, reach)
        x = torch.addcmul(x, self.attention_scale, y)
        return torch.addcmul(x, self.ffn_scale, self.project(self.expand.gelu(self.ffn_norm(x)))), past


class WindowAttention(nn.Module):
    """Multi-head attention over the window. One projection gives queries, keys and values, in that order."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.in_proj = Linear(config.width, 3 * config.width, bias=False)
        self.out_proj = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, past: Past, rotation: tuple[Tensor, Tensor], reach: Reach) -> tuple[Tensor, Past]:
        """Process one chunk `[B, T, D]`; return it and the newest keys and values."""
        batch, steps, width = x.shape
        heads = self.in_proj(x).view(batch, steps, 3, self.heads, -1)
        if isinstance(reach, NativeRingChunk):
            return self.out_proj(reach.attend(heads, rotation, past)), past  # type: ignore[arg-type]
        heads = heads.permute(2, 0, 3, 1, 4)  # [3, B, H, T, d]
        (q, k), v = rotate(heads[:2], *rotation), heads[2]
        y, past = reach.attend(q, k, v, past)  # type: ignore[arg-type]
        return self.out_proj(y.transpose(1, 2).reshape(batch, steps, width)), past


class WindowBlock(NamedTuple):
    """Queries that attend together, the keys in their reach, and the mask `[B, 1, queries, keys]`."""

    queries: slice
    keys: slice
    mask: Tensor


class WindowBlocks(NamedTuple):
    """What all layers share in one chunk with a state that is a value: all blocks, and context − 1."""

    blocks: tuple[WindowBlock, ...]
    tail: int

    @classmethod
    def of(cls, position: Tensor, steps: int, past: int, context: int) -> WindowBlocks:
        """Cut `steps` queries into blocks. Key index j has the position `position − past + j`."""
        blocks = []
        for start in range(0, steps, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, steps)
            first, end = max(start + past - context + 1, 0), stop + past
            q = torch.arange(start, stop, device=position.device)[:, None] + past
            k = torch.arange(first, end, device=position.device)
            visible = (k <= q) & (k > q - context)
            exists = k >= past - position[:, None]  # [B, keys]: not before the row's first step
            blocks.append(WindowBlock(slice(start, stop), slice(first, end), (visible & exists[:, None])[:, None]))
        return cls(tuple(blocks), context - 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, past: KeyValueTail | None) -> tuple[Tensor, KeyValueTail]:
        """Attend with the chunk's queries to the past and the chunk: all `[B, H, T, d]`."""
        if past is not None:
            k, v = torch.cat([past.keys.to(k.dtype), k], dim=2), torch.cat([past.values.to(v.dtype), v], dim=2)
        y = [attention(q[:, :, b.queries], k[:, :, b.keys], v[:, :, b.keys], b.mask) for b in self.blocks]
        return torch.cat(y, dim=2), self._tail(k, v)

    def _tail(self, k: Tensor, v: Tensor) -> KeyValueTail:
        excess = k.shape[2] - self.tail
        if 0 <= excess <= self.tail:  # the usual case of a stream; a copy would save little memory
            return KeyValueTail(k[:, :, excess:], v[:, :, excess:])
        start, missing = max(excess, 0), max(-excess, 0)  # before the window is full; masks exclude the padding
        pad = (0, 0, missing, 0)
        return KeyValueTail(F.pad(k[:, :, start:], pad), F.pad(v[:, :, start:], pad))


def rotary(position: Tensor, steps: int, config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[B, 1, steps, head_dim / 2]` for the steps from `position [B]` on."""
    dim = config.width // config.heads
    step = position[:, None] + torch.arange(steps, device=position.device)
    angle = rotary_angle(step[:, None], rotary_frequencies(dim, config.rope_theta, position.device))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs (2i, 2i+1) of `x [..., B, H, T, d]`."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
