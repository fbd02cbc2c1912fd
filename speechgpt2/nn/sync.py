"""Whether the host may read a tensor's value in the middle of a computation."""

from __future__ import annotations

from torch import Tensor


def can_sync(x: Tensor) -> bool:
    """Return whether reading a value of `x` on the host is free, which it is on a CPU.

    On another device the host would have to wait, and a step that is captured as a CUDA graph must not synchronise with
    the host at all (nn/cuda_graph.py).
    """
    return x.device.type == "cpu"
