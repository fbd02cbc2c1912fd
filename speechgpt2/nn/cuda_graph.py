"""CUDA graphs, GPU work that is captured once and then replayed, and a stream beside the current one.

A step of a large model is thousands of small kernels, and launching one takes longer than most of them run. See
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    step = GraphedFunction(function, [idle])    # calls it a few times, with arguments that change nothing
    result = step(*arguments)                   # of the same shapes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from speechgpt2.streaming import tree_map

P = ParamSpec("P")
T = TypeVar("T")
CELL_BLOCK = 16  # attention reads a multiple of so many cells of a cache
SHORTEST_GRAPH = 256  # fewest cells that the graph of a step reads
WARM_UP_CALLS = 3  # before the capture: libraries choose kernels and allocate memory in the first calls


class GraphedFunction:
    """A function of tensors, captured as CUDA graphs.

    It may read and write other tensors in place, if their addresses do not change. It must not synchronise with the
    host. Branches in Python are taken at the capture, and arguments other than tensors are constants: there is a graph
    for each choice of them. The graphs share their memory, since one call follows the other.

    Args:
        function: The function to capture.
        idle: For each graph, arguments to capture it with; such a call changes nothing.
    """

    def __init__(self, function: Callable[..., Any], idle: Sequence[Sequence[Any]]):
        self.graphs: list[Graph] = []
        for arguments in idle:
            pool = self.graphs[0].graph.pool() if self.graphs else None
            self.graphs.append(Graph(function, arguments, pool))

    def __call__(self, *arguments: Any) -> Any:
        """Replay with other values.

        Args:
            arguments: Tensors of the captured shapes; other values must equal those of a graph.

        Returns:
            A copy of the function's result.

        Raises:
            ValueError: There is no graph for the arguments that are no tensors.
        """
        constants = constants_of(arguments)
        for graph in self.graphs:
            if graph.constants == constants:
                return graph.replay(*arguments)
        raise ValueError(f"there is no graph for {constants}, only for {[graph.constants for graph in self.graphs]}")


class Graph:
    """One capture of a function; see `GraphedFunction`. With a `pool` it uses the memory of another graph."""

    @torch.inference_mode()
    def __init__(self, function: Callable[..., Any], idle: Sequence[Any], pool: Any = None):
        self.arguments = [x.clone() if isinstance(x, Tensor) else x for x in idle]
        self.constants = constants_of(idle)
        self.device = next(x.device for x in self.arguments if isinstance(x, Tensor) and x.is_cuda)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(WARM_UP_CALLS):
                    function(*self.arguments)
            torch.cuda.current_stream().wait_stream(side_stream)
            with torch.cuda.graph(self.graph, pool=pool):
                self.result = function(*self.arguments)

    @torch.inference_mode()
    def replay(self, *arguments: Any) -> Any:
        """Replay with the values of other tensors. Returns a copy of the result, on the stream of the caller."""
        for captured, argument in zip(self.arguments, arguments, strict=True):
            if isinstance(captured, Tensor):
                captured.copy_(argument, non_blocking=True)
        with torch.cuda.device(self.device):
            self.graph.replay()
        return None if self.result is None else tree_map(torch.clone, self.result)


class SideStream:
    """A stream of its own for the functions of another thread; on a CPU nothing.

    Functions must have read their results back to the host when they return, since their arguments' memory may then be
    used again.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def in_order(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function` as a call on this stream that waits for all work queued so far on the present one."""
        stream = self.stream
        if stream is None:
            return function
        ready = torch.cuda.current_stream(stream.device).record_event()

        def call(*args: P.args, **options: P.kwargs) -> T:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                return function(*args, **options)

        return call


def constants_of(arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments that are no tensors, which choose a graph."""
    return [x for x in arguments if not isinstance(x, Tensor)]


def graph_lengths(cells: int) -> list[int]:
    """Return how many cells attention reads in the graphs of a step: all `cells`, half as many, …, in rising order."""
    lengths = [cells]
    while lengths[0] >= 2 * SHORTEST_GRAPH:
        lengths.insert(0, -(-lengths[0] // (2 * CELL_BLOCK)) * CELL_BLOCK)
    return lengths


def graph_length(lengths: Sequence[int], needed: int) -> int:
    """Return the shortest of the `lengths` of graphs with so many cells; the longest if none has."""
    return next((length for length in lengths if length >= needed), lengths[-1])
