"""RMSNorm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467), with few operations for streaming on a CPU.

A step of one stream normalises vectors of some thousand numbers, a hundred times: there an operation costs what calling
it costs, and PyTorch's own composition calls ten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis. Packed (`nn.linear.pack`), it takes four operations and computes in float32."""

    gain: Tensor | None = None  # the weight times √D
    floor: Tensor  # √(D · eps)

    def pack(self, rows: int, half: bool) -> None:
        """Prepare for inference."""
        width = self.weight.numel()
        self.gain = self.weight.detach().float() * width**0.5
        self.floor = self.gain.new_tensor((width * (self.eps or 0.0)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        if self.gain is None or torch.is_grad_enabled():
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self.floor) * self.gain).to(x.dtype)
