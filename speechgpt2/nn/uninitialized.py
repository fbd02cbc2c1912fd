"""Build modules whose weights a checkpoint will replace: without drawing them, in their final precision and place.

PyTorch's meta device does the same, but importing what it needs takes as long as importing PyTorch.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

INITIALISERS = ("normal_", "trunc_normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_")
# How modules draw their initial weights. A function of nn.init is one call here, whose own calls are not seen.
DRAWS = {Tensor.normal_, Tensor.uniform_, *(getattr(nn.init, name) for name in INITIALISERS)}


class _SkipDraws(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in DRAWS:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


@contextmanager
def uninitialized(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Build modules on `device` in `dtype`, with weights of any value."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), _SkipDraws():
            yield
    finally:
        torch.set_default_dtype(before)


def return_memory() -> None:
    """Give memory that was freed back to the system, which glibc does for large blocks only."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
