"""A causal, streaming transformer with a sliding window. Layout `[B, T, D]`.

A query at position p sees the keys at p − context < position ≤ p. The state carries each row's position and the last
context − 1 keys and values (already rotated) of every layer. Queries attend in blocks, so a chunk may be longer than
the window, and memory is linear in its length. Rotary angles (Su et al., 2021, https://arxiv.org/abs/2104.09864) are
formed in float64 (`nn.precision.rotary_angle`), because a stream may run for days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.errors import UserError
from speechgpt2.nn.attention import attention
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.precision import rotary_angle, rotary_frequencies

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

    def forward(self, x: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        """Process one chunk `[B, T, D]`."""
        batch, steps, _ = x.shape
        position = state.position if state else torch.zeros(batch, dtype=torch.int64, device=x.device)
        past = self.config.context - 1 if state else 0
        rotation = rotary(position, steps, self.config, x.dtype)
        blocks = window_blocks(position, steps, past, self.config.context)
        tails = []
        for i, layer in enumerate(self.layers):
            x, tail = layer(x, state.layers[i] if state else None, rotation, blocks)
            tails.append(tail)
        return x, TransformerState(position + steps, tuple(tails))


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

    def forward(
        self, x: Tensor, tail: KeyValueTail | None, rotation: tuple[Tensor, Tensor], blocks: list[WindowBlock]
    ) -> tuple[Tensor, KeyValueTail]:
        """Process one chunk `[B, T, D]`; return it and the newest keys and values."""
        y, tail = self.attention(self.attention_norm(x), tail, rotation, blocks)
        x = x + self.attention_scale * y
        return x + self.ffn_scale * self.project(F.gelu(self.expand(self.ffn_norm(x)))), tail


class WindowAttention(nn.Module):
    """Multi-head attention over the window. One projection gives queries, keys and values, in that order."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.past = config.heads, config.context - 1
        self.in_proj = Linear(config.width, 3 * config.width, bias=False)
        self.out_proj = Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, tail: KeyValueTail | None, rotation: tuple[Tensor, Tensor], blocks: list[WindowBlock]
    ) -> tuple[Tensor, KeyValueTail]:
        """Process one chunk `[B, T, D]`; return it and the newest keys and values."""
        batch, steps, width = x.shape
        heads = self.in_proj(x).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, H, T, d]
        (q, k), v = rotate(heads[:2], *rotation), heads[2]
        if tail is not None:
            k, v = torch.cat([tail.keys.to(k.dtype), k], dim=2), torch.cat([tail.values.to(v.dtype), v], dim=2)
        y = torch.cat([attention(q[:, :, b.queries], k[:, :, b.keys], v[:, :, b.keys], b.mask) for b in blocks], dim=2)
        return self.out_proj(y.transpose(1, 2).reshape(batch, steps, width)), self._tail(k, v)

    def _tail(self, k: Tensor, v: Tensor) -> KeyValueTail:
        excess = k.shape[2] - self.past
        if 0 <= excess <= self.past:  # the usual case of a stream; a copy would save little memory
            return KeyValueTail(k[:, :, excess:], v[:, :, excess:])
        start, missing = max(excess, 0), max(-excess, 0)  # before the window is full; masks exclude the padding
        pad = (0, 0, missing, 0)
        return KeyValueTail(F.pad(k[:, :, start:], pad), F.pad(v[:, :, start:], pad))


class WindowBlock(NamedTuple):
    """Queries that attend together, the keys in their reach, and the mask `[B, 1, queries, keys]`."""

    queries: slice
    keys: slice
    mask: Tensor


def window_blocks(position: Tensor, steps: int, past: int, context: int) -> list[WindowBlock]:
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
    return blocks


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
