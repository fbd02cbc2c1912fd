"""CUDA graphs: GPU work that is captured once and then replayed.

A step of a large model is thousands of small kernels, and launching one takes longer than most of them run. See
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    step = GraphedFunction(function, *idle)     # calls it a few times, with arguments that change nothing
    result = step(*arguments)                   # of the same shapes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speechgpt2.streaming import tree_map

WARM_UP_CALLS = 3  # before the capture: libraries choose kernels and allocate memory in the first calls


class GraphedFunction:
    """A function of tensors, captured as a CUDA graph.

    It may read and write other tensors in place, if their addresses do not change. It must not synchronise with the
    host. Branches in Python are taken at the capture, and arguments other than tensors are constants.

    Args:
        function: The function to capture.
        idle: Arguments to capture it with; such a call changes nothing.
    """

    @torch.inference_mode()
    def __init__(self, function: Callable[..., Any], *idle: Any):
        self.arguments = [x.clone() if isinstance(x, Tensor) else x for x in idle]
        self.device = next(x.device for x in self.arguments if isinstance(x, Tensor) and x.is_cuda)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(WARM_UP_CALLS):
                    function(*self.arguments)
            torch.cuda.current_stream().wait_stream(side_stream)
            with torch.cuda.graph(self.graph):
                self.result = function(*self.arguments)

    @torch.inference_mode()
    def __call__(self, *arguments: Any) -> Any:
        """Replay with other values.

        Args:
            arguments: Tensors of the captured shapes; other values must equal the captured ones.

        Returns:
            A copy of the function's result.

        Raises:
            ValueError: An argument other than a tensor differs from the captured one.
        """
        for captured, argument in zip(self.arguments, arguments, strict=True):
            if isinstance(captured, Tensor):
                captured.copy_(argument, non_blocking=True)
            elif captured != argument:
                raise ValueError(f"captured with {captured}, called with {argument}")
        with torch.cuda.device(self.device):
            self.graph.replay()
        return None if self.result is None else tree_map(torch.clone, self.result)
