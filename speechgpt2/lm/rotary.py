"""Rotary position embedding in half-split pairs, as in Qwen2 and Llama (Su et al., 2021, https://arxiv.org/abs/2104.09864).

Angles are formed in float64 (`nn.precision`): float32 angles lose a hundredth of a radian after an hour of speech.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechgpt2.lm.config import BackboneConfig, Llama3RopeScaling, PatchDecoderConfig
from speechgpt2.nn.precision import rotary_angle, rotary_frequencies


def rotary(position: Tensor, config: BackboneConfig | PatchDecoderConfig) -> tuple[Tensor, Tensor]:
    """Return what `rotate` needs at `position [B, P]`: cosines, and sines with their signs.

    Returns:
        Two tensors `[B, 1, P, head_dim]` (float32). Both halves of the last axis hold the same angles.
    """
    dim = config.head_dim
    frequency = rotary_frequencies(dim, config.rope_theta, position.device)
    if config.rope_scaling is not None:
        frequency = scale_frequencies(frequency, config.rope_scaling)
    angle = rotary_angle(position[:, None], frequency)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of `x [B, H, P, d]`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def scale_frequencies(frequency: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Lower the frequencies `[d/2]` (radians per position) that turn less than a few times in the original context."""
    turns = frequency * scaling.original_max_position_embeddings / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)
