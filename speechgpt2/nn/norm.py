"""RMSNorm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467), in one call for streaming on a CPU.

A step of one stream normalises vectors of some thousand numbers, a hundred times: there an operation costs what calling
it costs, and PyTorch's own composition calls ten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechgpt2.nn.native import kernels_for


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis. Packed (`nn.linear.pack`), it uses the kernels in C if there are any."""

    is_packed = False

    def pack(self, rows: int, half: bool) -> None:
        """Prepare for inference."""
        self.is_packed = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        fits = self.is_packed and self.weight.dtype == torch.float32
        kernels = kernels_for(x, x.shape[-1]) if fits else None
        return super().forward(x) if kernels is None else kernels.rms_norm(x, self.weight, self.eps or 0.0)
