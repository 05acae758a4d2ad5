"""CUDA graphs: work of fixed shapes, recorded once and replayed without Python's share.

A graph replays the kernels of a call without the Python code between them, which is what limits small batches. It reads
and writes the same memory each time, so its inputs are copied into tensors that stay where they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from theworld.compilation import compiling

WARM_UP_CALLS = 3  # before a capture: kernels are compiled and chosen, and workspaces allocated
MAX_GRAPHS = 16

Value = TypeVar("Value")


class Graphs:
    """Captures functions as CUDA graphs that share one memory pool, so no two of them may run at the same time."""

    def __init__(self) -> None:
        self.pool: Any = None
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.anchors: list[torch.cuda.CUDAGraph] = []  # a pool whose last graph is gone could not be used again

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """Runs `function` three times, captures it, and returns what replays it on the caller's stream.

        `function` must not draw random numbers, copy from the host or wait for the device. What it allocates belongs to
        the pool: a tensor that it leaves is overwritten by the next replay.
        """
        with torch.cuda.device(device), compiling():
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            if device not in self.streams:
                self.streams[device] = torch.cuda.Stream(device)
                self.anchors.append(self._captured(partial(torch.zeros, 1, device=device), device))
            return self._captured(function, device).replay

    def _captured(self, function: Callable[[], Any], device: torch.device) -> torch.cuda.CUDAGraph:
        current, stream = torch.cuda.current_stream(), self.streams[device]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads, such as a data loader's, may use the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            function()
        return graph


class Recent(Generic[Value]):
    """The `size` values that were used last, by key."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: OrderedDict[Hashable, Value] = OrderedDict()
        self.kept_for: Hashable = None

    def keep_for(self, state: Hashable) -> None:
        """Drops all values if they were made for another state, such as other weights."""
        if state != self.kept_for:
            self.values.clear()
            self.kept_for = state

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made now if there is none; the least recently used one is dropped above `size`."""
        if key not in self.values:
            while len(self.values) >= self.size:  # before the new one is made, so that its memory is free
                self.values.popitem(last=False)
            self.values[key] = make()
        self.values.move_to_end(key)
        return self.values[key]


class CudaGraphs:
    """The graphs of one function, by the shapes of its inputs.

    Args:
        function: takes tensors on one device, and returns a tensor or a tuple of tensors; see `Graphs.capture`.
        max_graphs: graphs that are kept.
    """

    def __init__(self, function: Callable[..., Any], max_graphs: int = MAX_GRAPHS) -> None:
        self.function = function
        self.graphs = Graphs()
        self.recorded: Recent[tuple[Callable[[], None], list[Tensor], Any]] = Recent(max_graphs)
        self.seen: set[Hashable] = set()

    def __call__(self, *inputs: Tensor, **fixed: Hashable) -> Any:
        """The function's result.

        The first call with new shapes runs the function, and the second one captures it. The result of a captured call
        is overwritten by the next one.

        Args:
            fixed: arguments that are no tensors; other values are another graph.
        """
        key = (*(tensor.shape for tensor in inputs), *sorted(fixed.items()))
        if key not in self.seen:
            self.seen.add(key)
            return self.function(*inputs, **fixed)
        replay, own, outputs = self.recorded.get(key, lambda: self.record(partial(self.function, **fixed), inputs))
        for static, given in zip(own, inputs, strict=True):
            static.copy_(given)
        replay()
        return outputs

    def record(
        self, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], list[Tensor], Any]:
        own = [tensor.detach().clone() for tensor in inputs]
        outputs: list[Any] = []

        def call() -> None:
            outputs[:] = [function(*own)]

        replay = self.graphs.capture(call, own[0].device)
        return replay, own, outputs[0]
