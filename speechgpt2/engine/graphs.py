"""Work on a device that is recorded once and then replayed: a step of a large model is thousands of small kernels, and
starting them one by one takes longer than most of them run (CUDA graphs).

    step = Recording(function, *idle)     # calls it a few times: with arguments that leave everything as it is
    result = step(*arguments)             # of the same shapes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechgpt2.streaming import tree_map

WARM_UP = 3  # calls before recording, in which libraries choose their kernels and take their memory


class Recording:
    """A function that is recorded. It may read and write other tensors in place, as long as they stay where they are;
    it may look at no value, and what it decides in Python, and arguments that are no tensors, are decided for good.
    """

    @torch.inference_mode()
    def __init__(self, function: Callable[..., Any], *idle: Any):
        self.arguments = [x.clone() if isinstance(x, Tensor) else x for x in idle]
        self.device = next(x.device for x in self.arguments if isinstance(x, Tensor) and x.is_cuda)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    function(*self.arguments)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph):
                self.result = function(*self.arguments)

    @torch.inference_mode()
    def __call__(self, *arguments: Any) -> Any:
        """What the function returns for `arguments`, the caller's own."""
        for mine, given in zip(self.arguments, arguments, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given, non_blocking=True)
            elif mine != given:
                raise ValueError(f"recorded with {mine}, called with {given}")
        with torch.cuda.device(self.device):
            self.graph.replay()
        return None if self.result is None else tree_map(torch.clone, self.result)
