"""A causal, streaming, one-dimensional ConvNeXt; layout `[B, T, C]`.

Source: Liu et al., A ConvNet for the 2020s, 2022 (https://arxiv.org/abs/2201.03545).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechgpt2.nn.conv import CausalConv1d
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.native import kernels_for


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Stages of `depths[i]` blocks at width `dims[i]`, with a depthwise kernel of `kernel` steps."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    kernel: int = 7
    drop_path: float = 0.0  # stochastic depth of the last block in training; less in earlier blocks


class ConvNeXt(nn.Module):
    """`[B, T, c_in] -> [B, T, dims[-1]]`, causal, at the same rate."""

    def __init__(self, c_in: int, config: ConvNeXtConfig):
        super().__init__()
        self.stem = CausalConv1d(c_in, config.dims[0], config.kernel)
        self.transitions = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(a, eps=1e-6), Linear(a, b)) for a, b in zip(config.dims, config.dims[1:])
        )
        self.stem_norm = nn.LayerNorm(config.dims[0], eps=1e-6)
        blocks = sum(config.depths)
        drops = (config.drop_path * i / max(blocks - 1, 1) for i in range(blocks))
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvNeXtBlock(dim, config.kernel, next(drops)) for _ in range(depth))
            for depth, dim in zip(config.depths, config.dims)
        )
        self.norm = nn.LayerNorm(config.dims[-1], eps=1e-6)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        """Return the state of `batch` rows before any input."""
        blocks = [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]
        return (self.stem.init_state(batch), *(block.init_state(batch) for block in blocks))

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Process one chunk `[B, T, c_in]`."""
        before = iter(state or self.init_state(x.shape[0]))
        x, tail = self.stem(x.transpose(1, 2), next(before))
        x, after = self.stem_norm(x.transpose(1, 2)), [tail]
        for i, stage in enumerate(self.stages):
            if i:
                x = self.transitions[i - 1](x)
            for block in stage:  # type: ignore[attr-defined]
                x, tail = block(x, next(before))
                after.append(tail)
        return self.norm(x), tuple(after)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, a ×4 perceptron and a learnt scale, added to the input: `[B, T, C] -> [B, T, C]`."""

    def __init__(self, dim: int, kernel: int, drop_path: float = 0.0):
        super().__init__()
        self.depthwise = CausalConv1d(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = Linear(dim, 4 * dim)
        self.project = Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))
        self.drop_path = drop_path
        self.packed: tuple[Tensor, Tensor] | None = None

    def pack(self, rows: int, half: bool) -> None:
        """Arrange the weights of the convolution and the norm for the kernel in C (`NativeKernels.depthwise_norm`)."""
        conv, norm = self.depthwise, self.norm
        taps = conv.weight.detach()[:, 0].t().float().contiguous()
        assert conv.bias is not None
        self.packed = taps, torch.stack([conv.bias, norm.weight, norm.bias]).detach().float()

    def init_state(self, batch: int) -> Tensor:
        """Return the state of `batch` rows before any input."""
        return self.depthwise.init_state(batch)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Process one chunk `[B, T, C]`."""
        y, state = self._depthwise_norm(x, state)
        y = self.project(self.expand.gelu(y))
        if self.training and self.drop_path:
            keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
            y = y * keep / (1 - self.drop_path)
        return torch.addcmul(x, self.gamma, y), state

    def _depthwise_norm(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        kernels = None if self.packed is None else kernels_for(x, x.shape[2], half=True)
        if kernels is None or self.packed is None:
            y, state = self.depthwise(x.transpose(1, 2), state)
            return self.norm(y.transpose(1, 2)), state
        tail = (self.init_state(x.shape[0]) if state is None else state).mT.to(x.dtype)
        y = kernels.depthwise_norm(x, tail, *self.packed, self.norm.eps)
        past = tail.shape[1]
        newest = x if x.shape[1] >= past else torch.cat([tail, x], dim=1)
        return y, newest[:, newest.shape[1] - past :].mT
