"""Stands in for CUDA graphs on a CPU: functions are traced once and replayed without Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from speechgpt2.lm import backbone, model, sampling
from speechgpt2.nn import native
from speechgpt2.nn.cuda_graph import constants_of


class Trace:
    """Stands in for a capture: the operators that the function went through once, whatever Python decided then. It
    cannot be traced if it looks at a value.
    """

    @torch.inference_mode()
    def __init__(self, function, idle):
        tensors = [x for x in idle if isinstance(x, torch.Tensor)]

        def of_tensors(*given):
            given = list(given)
            return function(*(given.pop(0) if isinstance(x, torch.Tensor) else x for x in idle))

        self.constants, self.graph = constants_of(idle), make_fx(of_tensors)(*tensors)

    @torch.inference_mode()
    def __call__(self, *arguments):
        return self.graph(*(x.clone() for x in arguments if isinstance(x, torch.Tensor)))


class Traced:
    """A function with a trace for each choice of its arguments that are no tensors."""

    made = 0

    def __init__(self, function, idle):
        self.traces = [Trace(function, arguments) for arguments in idle]
        Traced.made += len(self.traces)

    def __call__(self, *arguments):
        (trace,) = (trace for trace in self.traces if trace.constants == constants_of(arguments))
        return trace(*arguments)


@contextmanager
def without_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No value is looked at, and no kernel in C is called, which a trace would not see."""
    monkeypatch.setenv("SG2_NATIVE", "0")
    native.native_kernels.cache_clear()
    for module in (backbone, model, sampling):
        monkeypatch.setattr(module, "can_sync", lambda x: False)
    yield
    native.native_kernels.cache_clear()
