"""CUDA graphs of functions on tensors: recorded once for each shape of the inputs, and replayed from then on.

A graph replays the kernels of a call without the Python code between them, which is what limits small batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2  # calls before recording, in which kernels are compiled and libraries initialised
MAX_GRAPHS = 16


class CudaGraphs:
    """The graphs of one function, by the shapes of its inputs; the least recently used one is dropped first.

    Args:
        function: takes tensors, and returns a tensor or a tuple of tensors. It may not read tensors from Python or
            move them between devices.
        max_graphs: graphs that are kept.
    """

    def __init__(self, function: Callable[..., Any], max_graphs: int = MAX_GRAPHS) -> None:
        self.function = function
        self.max_graphs = max_graphs
        self.recorded: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = OrderedDict()
        self.seen: set[Hashable] = set()

    @cached_property
    def pool(self) -> Any:
        """Memory that all graphs of this function share, since they never run at the same time."""
        return torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Tensor, **fixed: Hashable) -> Any:
        """The function's result.

        The first call with new shapes runs the function, and the second one records it. The result of a recorded call
        is overwritten by the next one.

        Args:
            fixed: arguments that are no tensors; other values are another graph.
        """
        key = (*(tensor.shape for tensor in inputs), *sorted(fixed.items()))
        if key not in self.recorded:
            if key not in self.seen:
                self.seen.add(key)
                return self.function(*inputs, **fixed)
            self.recorded[key] = self.record(partial(self.function, **fixed), inputs)
            if len(self.recorded) > self.max_graphs:
                self.recorded.popitem(last=False)
        self.recorded.move_to_end(key)
        graph, own, outputs = self.recorded[key]
        for static, given in zip(own, inputs, strict=True):
            static.copy_(given)
        graph.replay()
        return outputs

    def record(
        self, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        own = [tensor.detach().clone() for tensor in inputs]
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        other.wait_stream(current)
        with torch.cuda.stream(other):
            for _ in range(WARM_UPS):
                function(*own)
        current.wait_stream(other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # loaders pin memory
            outputs = function(*own)
        return graph, own, outputs
