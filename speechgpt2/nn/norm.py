"""RMSNorm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467), in one call for streaming on a CPU.

A step of one stream normalises vectors of some thousand numbers, a hundred times: there an operation costs what calling
it costs, and PyTorch's own composition calls ten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechgpt2.nn.native import VECTOR, NativeKernels, native_kernels


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis. Packed (`nn.linear.pack`), it uses the kernels in C if there are any."""

    native: NativeKernels | None = None

    def pack(self, rows: int, half: bool) -> None:
        """Prepare for inference."""
        self.native = None if self.weight.numel() % VECTOR else native_kernels()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        if self.native is None or not x.dtype == self.weight.dtype == torch.float32 or torch.is_grad_enabled():
            return super().forward(x)
        return self.native.rms_norm(x, self.weight, self.eps or 0.0)
