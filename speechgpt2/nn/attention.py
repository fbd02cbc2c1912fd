"""Scaled dot-product attention, by the kernel that is fastest where it runs.

Fused kernels save memory, and on a CPU they are the better ones for streaming; but their backward pass there took a
quarter of a training step at the sizes of small models, where plain matrix products take a twentieth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """`q [B, H, P, d]` over `k, v [B, H, S, d]` -> `[B, H, P, d]`.

    `mask` (bool, true: seen) broadcasts to `[B, H, P, S]`; or, `causal`, a query sees the keys up to its own index.
    """
    if q.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
