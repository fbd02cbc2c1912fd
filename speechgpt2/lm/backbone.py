"""The decoder-only transformer: a large one is the backbone, a small one the patch decoder. Layout `[B, P, D]`.

RMSNorm, grouped-query attention, half-split rotary embedding and SwiGLU, as in Qwen2 (Yang et al., 2024,
https://arxiv.org/abs/2407.10671). The configuration covers what other families change: attention biases, query and key
norms, the size of a head and the rotary frequencies (lm/families/).

It follows the contract of streaming.py with preallocated keys and values. A row's chunk is written at the row's own
position, so rows may be at different positions. A row rewinds by lowering its position, and cells past a position are
never read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.native_stack import NativeStack
from speechgpt2.lm.rotary import rotary, rotate
from speechgpt2.nn.attention import attention
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.sync import can_sync
from speechgpt2.streaming import Cache

QUERY_BLOCK = 256  # queries that attend together; bounds the memory of a long chunk
FEW_KEYS = 32  # with at most this many keys, attending in all rows at once is cheaper than row by row


class StackState(NamedTuple):
    """Key-value cache of a stack: the filled positions `position [B]` (int64) and each layer's keys and values.

    A cache has one spare cell past its capacity, where writes that overflow end up.
    """

    position: Tensor
    layers: tuple[Cache, ...]

    @property
    def capacity(self) -> int:
        """Positions that a row can hold."""
        return self.layers[0].keys.shape[2] - 1


class QueryBlock(NamedTuple):
    """Queries that attend together, the number of keys that they may see, and the mask `[B, 1, P, S]`.

    Without a mask each query sees the keys up to its own position.
    """

    queries: slice
    keys: int
    mask: Tensor | None


class AttentionPlan(NamedTuple):
    """What all layers share in one call: the rotation and which keys each query sees.

    `cells [B, 1, P, 1]` are the cache cells to write, None without a state. If `rows` is given, it lists the row
    number and the position of every active row, and each row attends by itself.
    """

    cos: Tensor
    sin: Tensor
    blocks: list[QueryBlock]
    cells: Tensor | None
    rows: list[tuple[int, int]] | None = None


class DecoderStack(nn.Module):
    """Pre-norm decoder layers and a final norm: `[B, P, D] -> [B, P, D]`."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.native: NativeStack | None = None

    def use_native(self) -> None:
        """Process few positions in C, if all layers are packed for it (`nn.linear.pack`)."""
        self.native = NativeStack.of(self)

    def init_state(self, batch: int, capacity: int) -> StackState:
        """Return an empty cache of `batch` rows with room for `capacity` positions each."""
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
        """Process one chunk.

        Without a state this is causal attention over the whole sequence, for training. With a state no gradient
        passes through the cache.

        Args:
            x: The chunk, `[B, P, D]`.
            state: The cache before the chunk.
            lengths: Valid positions of each row, `[B]`. A row of length 0 stays unchanged. Outputs past a length are
                undefined.
            segments: Ids of packed sequences, `[B, P]`, for training only. Positions start at 0 in each sequence.
            kv_length: Upper bound of every row's position after the chunk, which limits how much of the cache is read.
                On a CPU it is computed if absent.

        Returns:
            Hidden states after the final norm, `[B, P, D]`, and the state after the chunk.

        Raises:
            ValueError: If a row exceeds the capacity. Only a CPU can check this without waiting for the device.
        """
        if state is None:
            plan = plan_training(x, segments, self.config)
        else:
            check_capacity(state, x.shape[1] if lengths is None else lengths)
            if self.native is not None and self.native.takes(x, state.layers):
                y = self.native(x, state.position, lengths, state.layers)
                return y, advanced(state, x, lengths)
            by_row = x.shape[1] == 1 and can_sync(x) and (len(x) == 1 or state.capacity > FEW_KEYS)
            plan = (
                plan_by_row(x, state, lengths, self.config) if by_row else plan_chunk(x, state, kv_length, self.config)
            )
        for i, layer in enumerate(self.layers):
            x = layer(x, state.layers[i] if state else None, plan)
        x = self.norm(x)
        if state is None:
            return x, None
        return x, advanced(state, x, lengths)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = SwiGLU(config)

    def forward(self, x: Tensor, cache: Cache | None, plan: AttentionPlan) -> Tensor:
        """Process one chunk `[B, P, D]` and write its keys and values to the cache, if there is one."""
        x = x + self.attention(self.attention_norm(x), cache, plan)
        return x + self.ffn(self.ffn_norm(x))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020, https://arxiv.org/abs/2002.05202); one matrix holds gate and up."""

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn, bias=False)
        self.down = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., D]` to `[..., D]`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GroupedQueryAttention(nn.Module):
    """Query heads share key-value heads (Ainslie et al., 2023, https://arxiv.org/abs/2305.13245).

    One projection gives queries, keys and values, in that order, each head-major.
    """

    def __init__(self, config: BackboneConfig | PatchDecoderConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        all_heads = config.heads + 2 * config.kv_heads
        self.qkv = Linear(config.width, all_heads * config.head_dim, bias=config.attention_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.out = Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None, plan: AttentionPlan) -> Tensor:
        """Process one chunk `[B, P, D]` and write its keys and values to the cache, if there is one."""
        batch, steps, _ = x.shape
        heads = self.qkv(x).view(batch, steps, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            heads = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=1)
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(qk, plan.cos, plan.sin).split((self.heads, self.kv_heads), dim=1)
        if cache is not None and plan.rows is not None:
            y = attend_by_row(q, k, v, cache, plan.rows)
        else:
            y = attend_in_blocks(q, k, v, cache, plan)
        return self.out(y.transpose(1, 2).reshape(batch, steps, self.heads * self.head_dim))


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, cache: Cache | None, plan: AttentionPlan) -> Tensor:
    """Attend with `q [B, H, P, d]` over `k, v [B, Hkv, P, d]`, or over the cache after writing `k` and `v` to it."""
    if cache is not None and plan.cells is not None:
        cells = plan.cells.expand(k.shape)
        cache.keys.scatter_(2, cells, k.detach().to(cache.keys.dtype))
        cache.values.scatter_(2, cells, v.detach().to(cache.values.dtype))
        k, v = cache
    parts = [attend(q[:, :, b.queries], k[:, :, : b.keys], v[:, :, : b.keys], b.mask) for b in plan.blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def attend_by_row(q: Tensor, k: Tensor, v: Tensor, cache: Cache, rows: list[tuple[int, int]]) -> Tensor:
    """Attend one step `[B, H, 1, d]`: each of `rows` (number, position) writes its cell and reads up to it."""
    y = []
    for row, position in rows:
        keys, values = (cells.narrow(0, row, 1).narrow(2, 0, position + 1) for cells in cache)
        keys.select(2, position).copy_(k[row, :, 0])
        values.select(2, position).copy_(v[row, :, 0])
        y.append(attend(q.narrow(0, row, 1), keys, values, None))
    if len(y) == len(q):
        return y[0] if len(y) == 1 else torch.cat(y)
    out = torch.zeros_like(q)
    for (row, _), part in zip(rows, y, strict=True):
        out[row] = part[0]
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with `q [B, H, P, d]` over `k, v [B, Hkv, S, d]`.

    Without a mask `[B, 1, P, S]` several queries attend causally, and a single query sees all keys.
    """
    steps, shared = q.shape[2], q.shape[1] // k.shape[1]
    if mask is None and steps > 1:
        k, v = (k, v) if shared == 1 else (k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        return attention(q, k, v, causal=True)
    # Heads that share keys become further queries, so that no key is copied for them.
    if mask is not None and steps > 1:
        mask = mask.repeat(1, 1, shared, 1)
    folded = q.reshape(q.shape[0], k.shape[1], shared * steps, q.shape[3])
    return attention(folded, k.to(q.dtype), v.to(q.dtype), mask).reshape(q.shape)


def advanced(state: StackState, x: Tensor, lengths: Tensor | None) -> StackState:
    """Return the state after the chunk `x [B, P, D]`."""
    return StackState(state.position + (x.shape[1] if lengths is None else lengths), state.layers)


def check_capacity(state: StackState, lengths: Tensor | int) -> None:
    """Raise ValueError if a row would exceed the capacity. Off the CPU the spare cell takes the overflow instead."""
    if can_sync(state.position) and int((state.position + lengths).max()) > state.capacity:
        raise ValueError(f"a row would pass the state's capacity of {state.capacity} positions")


def plan_chunk(
    x: Tensor, state: StackState, kv_length: int | None, config: BackboneConfig | PatchDecoderConfig
) -> AttentionPlan:
    """Plan a chunk that continues each row at its own position. Overflow goes to the spare cell."""
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
            blocks.append(QueryBlock(slice(0, 1), keys, None))
            continue
        mask = torch.arange(keys, device=x.device) <= position[:, start:stop, None]
        blocks.append(QueryBlock(slice(start, stop), keys, mask[:, None]))
    cells = position.clamp(max=state.capacity)[:, None, :, None]
    return AttentionPlan(*rotary(position, config), blocks, cells)


def plan_by_row(
    x: Tensor, state: StackState, lengths: Tensor | None, config: BackboneConfig | PatchDecoderConfig
) -> AttentionPlan:
    """Plan one step on a CPU, where reading the cache dominates: each row reads its own part, idle rows nothing."""
    positions = state.position.tolist()
    active = [1] * len(positions) if lengths is None else lengths.tolist()
    rows = [(row, position) for row, position in enumerate(positions) if active[row]]
    return AttentionPlan(*rotary(state.position[:, None], config), [], None, rows)


def plan_training(x: Tensor, segments: Tensor | None, config: BackboneConfig | PatchDecoderConfig) -> AttentionPlan:
    """Plan a whole sequence. With `segments [B, P]` a position sees only the past of its own segment."""
    steps = x.shape[1]
    index = torch.arange(steps, device=x.device)
    if segments is None:
        return AttentionPlan(*rotary(index[None], config), [QueryBlock(slice(0, steps), steps, None)], None)
    fresh = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    begin = torch.where(fresh, index, 0).cummax(dim=1).values
    blocks = []
    for start in range(0, steps, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, steps)
        query, key = index[start:stop, None], index[:stop]
        mask = (key <= query) & (key >= begin[:, start:stop, None])
        blocks.append(QueryBlock(slice(start, stop), stop, mask[:, None]))
    return AttentionPlan(*rotary(index - begin, config), blocks, None)
