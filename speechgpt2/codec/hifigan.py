"""The released waveform head: a causal HiFi-GAN generator with grouped residual blocks.

Source: Kong et al., HiFi-GAN, 2020 (https://arxiv.org/abs/2010.05646).
"""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import HiFiGANConfig
from speechgpt2.nn.conv import CausalConv1d, CausalConvTranspose1d

SLOPE = 0.1  # of the leaky ReLUs inside
OUTPUT_SLOPE = 0.01  # of the last one


class HiFiGAN(nn.Module):
    """`[B, T, C]` -> `pcm [B, T · product of scales]`, within −1…1."""

    def __init__(self, c_in: int, config: HiFiGANConfig):
        super().__init__()
        widths = [config.channels // 2**i for i in range(len(config.scales) + 1)]
        self.input = CausalConv1d(c_in, widths[0], config.kernel)
        self.up = nn.ModuleList(
            CausalConvTranspose1d(a, b, scale) for a, b, scale in zip(widths, widths[1:], config.scales)
        )
        rates = list(accumulate(config.scales, operator.mul))
        self.blocks = nn.ModuleList(GroupedResidualBlock(w, rate, config) for w, rate in zip(widths[1:], rates))
        self.output = CausalConv1d(widths[-1], 1, config.kernel, slope=OUTPUT_SLOPE)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state of `batch` rows before any input."""
        return tuple(m.init_state(batch) for m in (self.input, *self.up, *self.blocks, self.output))  # type: ignore[operator]

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Process one chunk `[B, T, C]`."""
        before = state or self.init_state(x.shape[0])
        scales = len(self.up)
        x, tail = self.input(x.transpose(1, 2), before[0])
        ups, blocks = [], []
        for up, block, up_state, block_state in zip(self.up, self.blocks, before[1:], before[1 + scales :]):
            x, up_state = up(F.leaky_relu(x, SLOPE), up_state)
            x, block_state = block(x, block_state)
            ups.append(up_state)
            blocks.append(block_state)
        x, last = self.output(x, before[-1])
        return x.tanh()[:, 0], (tail, *ups, *blocks, last)


class GroupedResidualBlock(nn.Module):
    """Parallel branches as groups: tiled input, dilated residual convolutions, and a 1×1 convolution to mix them."""

    def __init__(self, channels: int, rate: int, config: HiFiGANConfig):
        super().__init__()
        wide, kernel, groups = channels * config.groups, config.block_kernel, config.groups
        self.groups = groups
        self.dilated = nn.ModuleList(
            CausalConv1d(wide, wide, kernel, dilation, groups, rate=rate, slope=SLOPE) for dilation in config.dilations
        )
        self.plain = nn.ModuleList(
            CausalConv1d(wide, wide, kernel, 1, groups, rate=rate, slope=SLOPE) for _ in config.dilations
        )
        self.mix = CausalConv1d(wide, channels, 1, bias=False, rate=rate)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        """Return the state of `batch` rows before any input."""
        pairs = zip(self.dilated, self.plain)
        return tuple(conv.init_state(batch) for pair in pairs for conv in pair)  # type: ignore[operator]

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Process one chunk `[B, C, T]`."""
        x, after = x.mT.repeat(1, 1, self.groups).mT, []
        for i, (dilated, plain) in enumerate(zip(self.dilated, self.plain)):
            y, tail = dilated(x, state[2 * i])
            y, tail2 = plain(y, state[2 * i + 1])
            x = y + x  # in the memory layout of y
            after += [tail, tail2]
        return self.mix(x)[0], tuple(after)


def fold_weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Return the weight g · v / ‖v‖ of a weight-normalised layer, with the norm over all dimensions but the first."""
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)
    return v * (g / norm)
