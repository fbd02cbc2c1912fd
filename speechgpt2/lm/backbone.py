"""The Qwen2 decoder, once: the backbone is a big one, the patch decoder a small one. Layout `[B, P, D]`.

RMSNorm, grouped-query attention with biases on q, k and v, half-split rotary embedding, SwiGLU (Yang et al., 2024). It
streams by the contract of streaming.py with preallocated keys and values: a row's chunk is written at the row's own
position, so rows are at different times, a row rewinds by lowering its position, and what lies past a position is
void. Rotary angles are formed in float64, since a position may be large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.nn.attention import attention
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.sync import can_sync
from speechgpt2.streaming import Cache

QUERY_BLOCK = 256  # queries that attend together; bounds the memory of a long chunk
FEW_KEYS = 32  # up to here it is cheaper to attend with all rows' keys at once


class StackState(NamedTuple):
    """`position [B]` (int64): positions filled so far; `layers`: keys and values, one spare cell past the capacity."""

    position: Tensor
    layers: tuple[Cache, ...]

    @property
    def capacity(self) -> int:
        """Positions a row can hold."""
        return self.layers[0].keys.shape[2] - 1


class Block(NamedTuple):
    """Queries that attend together, how many keys they reach, and which of them each sees (None: all up to its own)."""

    queries: slice
    keys: int
    mask: Tensor | None


class View(NamedTuple):
    """What the layers of one call share: rotation; and blocks with the cells `[B, 1, P, 1]` to write (None: no state),
    or, of rows that attend each by itself, their numbers and positions.
    """

    cos: Tensor
    sin: Tensor
    blocks: list[Block]
    cells: Tensor | None
    rows: list[tuple[int, int]] | None = None


class CausalStack(nn.Module):
    """Pre-norm decoder layers and a final norm. `[B, P, D] -> [B, P, D]`."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def init_state(self, batch: int, capacity: int) -> StackState:
        """Room for `capacity` positions in each of `batch` rows."""
        weight, c = self.norm.weight, self.config
        shape = (batch, c.kv_heads, capacity + 1, c.head_dim)
        layers = tuple(Cache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers)
        return StackState(torch.zeros(batch, dtype=torch.int64, device=weight.device), layers)

    def forward(
        self,
        x: Tensor,
        state: StackState | None = None,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        kv_length: int | None = None,
    ) -> tuple[Tensor, StackState | None]:
        """One chunk `x [B, P, D]` -> hidden states after the final norm, and the state after the chunk.

        Without a state this is plain causal attention that can be learnt from; `segments [B, P]` (ids) then keeps
        packed sequences apart, positions start anew in each. With a state no gradient passes through the cache.
        `lengths [B]`: the positions that count in each row, 0 leaves it idle; outputs past them mean nothing.
        `kv_length`: a bound, known on the host, on every position after the chunk, so that no more of the cache is
        read; found by itself on a CPU. Errors: ValueError past the capacity, where that can be seen without
        waiting for a device.
        """
        if state is None:
            view = training_view(x, segments, self.config)
        else:
            check_capacity(state, x.shape[1] if lengths is None else lengths)
            by_row = x.shape[1] == 1 and can_sync(x) and (len(x) == 1 or state.capacity > FEW_KEYS)
            view = row_view(state, lengths, self.config) if by_row else cached_view(x, state, kv_length, self.config)
        for i, layer in enumerate(self.layers):
            x = layer(x, state.layers[i] if state else None, view)
        x = self.norm(x)
        if state is None:
            return x, None
        return x, StackState(state.position + (x.shape[1] if lengths is None else lengths), state.layers)


class Layer(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, cache: Cache | None, view: View) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache, view)
        return x + self.ffn(self.ffn_norm(x))


class FeedForward(nn.Module):
    """SwiGLU; gate and up are one matrix, in that order."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn, bias=False)
        self.down = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Attention(nn.Module):
    """Grouped-query attention; queries, keys and values come from one projection, in that order, each head-major."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim)
        self.out = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, view: View) -> Tensor:
        batch, steps, width = x.shape
        heads = self.qkv(x).view(batch, steps, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(qk, view.cos, view.sin).split((self.heads, self.kv_heads), dim=1)
        if cache is not None and view.rows is not None:
            y = attend_by_row(q, k, v, cache, view.rows)
        else:
            y = attend_in_blocks(q, k, v, cache, view)
        return self.out(y.transpose(1, 2).reshape(batch, steps, width))


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, cache: Cache | None, view: View) -> Tensor:
    """`q [B, H, P, d]` over `k, v [B, Hkv, P, d]`, which are first put into the cache, if there is one."""
    if cache is not None and view.cells is not None:
        cells = view.cells.expand(k.shape)
        cache.keys.scatter_(2, cells, k.detach().to(cache.keys.dtype))
        cache.values.scatter_(2, cells, v.detach().to(cache.values.dtype))
        k, v = cache
    parts = [attend(q[:, :, b.queries], k[:, :, : b.keys], v[:, :, : b.keys], b.mask) for b in view.blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def attend_by_row(q: Tensor, k: Tensor, v: Tensor, cache: Cache, rows: list[tuple[int, int]]) -> Tensor:
    """One step `[B, H, 1, d]`: each of `rows` (number, position) writes its cell and reads those up to it."""
    y = [q.new_zeros(1, *q.shape[1:])] * len(q)
    for row, position in rows:
        one, seen = slice(row, row + 1), slice(position + 1)
        cache.keys[one, :, position], cache.values[one, :, position] = k[one, :, 0], v[one, :, 0]
        y[row] = attend(q[one], cache.keys[one, :, seen], cache.values[one, :, seen], None)
    return torch.cat(y)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`q [B, H, P, d]` over `k, v [B, Hkv, S, d]`; `mask [B, 1, P, S]`; None: causal, or all keys for one query.

    Heads that share keys become further queries, so that no key is copied for them.
    """
    steps, shared = q.shape[2], q.shape[1] // k.shape[1]
    if mask is None and steps > 1:
        k, v = (k, v) if shared == 1 else (k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        return attention(q, k, v, causal=True)
    if mask is not None and steps > 1:
        mask = mask.repeat(1, 1, shared, 1)
    folded = q.reshape(q.shape[0], k.shape[1], shared * steps, q.shape[3])
    return attention(folded, k.to(q.dtype), v.to(q.dtype), mask).reshape(q.shape)


def check_capacity(state: StackState, lengths: Tensor | int) -> None:
    """Errors: ValueError if a row would outgrow the state. A device is not asked; there the spare cell takes it."""
    if can_sync(state.position) and int((state.position + lengths).max()) > state.capacity:
        raise ValueError(f"a row would pass the state's capacity of {state.capacity} positions")


def cached_view(
    x: Tensor, state: StackState, kv_length: int | None, config: BackboneConfig | PatchDecoderConfig
) -> View:
    """Each row goes on at its own position. Void cells are masked; what passes the capacity goes to the spare cell."""
    batch, steps, _ = x.shape
    position = state.position[:, None] + torch.arange(steps, device=x.device)
    exact = kv_length is None and can_sync(x)
    if exact:
        kv_length = int(state.position.max()) + steps
    bound = state.capacity + steps if kv_length is None else kv_length
    blocks = []
    for start in range(0, steps, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, steps)
        keys = min(bound - steps + stop, state.capacity + 1)
        if exact and batch == 1 and steps == 1:
            blocks.append(Block(slice(0, 1), keys, None))
            continue
        mask = torch.arange(keys, device=x.device) <= position[:, start:stop, None]
        blocks.append(Block(slice(start, stop), keys, mask[:, None]))
    cells = position.clamp(max=state.capacity)[:, None, :, None]
    return View(*rotary(position, config), blocks, cells)


def row_view(state: StackState, lengths: Tensor | None, config: BackboneConfig | PatchDecoderConfig) -> View:
    """One step of many rows on a CPU, where it matters how much of the caches is read: each row its own part, and idle
    ones nothing.
    """
    positions = state.position.tolist()
    active = [1] * len(positions) if lengths is None else lengths.tolist()
    rows = [(row, position) for row, position in enumerate(positions) if active[row]]
    return View(*rotary(state.position[:, None], config), [], None, rows)


def training_view(x: Tensor, segments: Tensor | None, config: BackboneConfig | PatchDecoderConfig) -> View:
    """The whole sequence at once; with `segments [B, P]` each position sees only its own segment's past."""
    steps = x.shape[1]
    index = torch.arange(steps, device=x.device)
    if segments is None:
        return View(*rotary(index[None], config), [Block(slice(0, steps), steps, None)], None)
    fresh = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    begin = torch.where(fresh, index, 0).cummax(dim=1).values
    blocks = []
    for start in range(0, steps, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, steps)
        query, key = index[start:stop, None], index[:stop]
        mask = (key <= query) & (key >= begin[:, start:stop, None])
        blocks.append(Block(slice(start, stop), stop, mask[:, None]))
    return View(*rotary(index - begin, config), blocks, None)


def rotary(position: Tensor, config: BackboneConfig | PatchDecoderConfig) -> tuple[Tensor, Tensor]:
    """For `rotate`: cosines twice, and sines with their signs, `[B, 1, P, head_dim]` (float32) at `position [B, P]`."""
    dim = config.head_dim
    frequency = config.rope_base ** (-torch.arange(0, dim, 2, device=position.device, dtype=torch.float64) / dim)
    angle = position[:, None, :, None].double() * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of `x [B, H, P, d]`."""
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([b, a], dim=-1), sin).to(x.dtype)
