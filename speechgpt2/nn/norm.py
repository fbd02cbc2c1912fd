"""RMSNorm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467), in one call for streaming on a CPU.

A step of one stream normalises vectors of some thousand numbers, a hundred times: there an operation costs what calling
it costs, and PyTorch's own composition calls ten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechgpt2.nn.native import VECTOR, native_kernels


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis. Packed (`nn.linear.pack`), it uses the kernels in C if there are any."""

    is_packed = False

    def pack(self, rows: int, half: bool) -> None:
        """Prepare for inference."""
        self.is_packed = self.weight.numel() % VECTOR == 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        fits = self.is_packed and x.dtype == self.weight.dtype == torch.float32 and not torch.is_grad_enabled()
        kernels = native_kernels() if fits else None
        return super().forward(x) if kernels is None else kernels.rms_norm(x, self.weight, self.eps or 0.0)
