"""The rule of the fast path, and CUDA graphs: work of fixed shapes, captured once and replayed without Python's share.

A captured function takes no arguments: it reads and writes tensors that stay where they are ("static" ones), which the
caller fills before a replay. Everything else that it allocates is in a memory pool that all graphs of a world model
share, so a result is copied out before the next graph runs.
"""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

FAST_PATHS = ("auto", "on", "off")
WARM_UP_CALLS = 3  # before a capture: kernels are compiled and chosen, and workspaces allocated
MAX_SHAPES = 64  # of one compiled function; PyTorch's own limit of 8 would count each batch size and number of frames

Value = TypeVar("Value")


def check_fast_path(fast_path: str) -> str:
    """Returns `fast_path`, or raises a ValueError if it is none of FAST_PATHS."""
    if fast_path not in FAST_PATHS:
        raise ValueError(f"fast_path is {fast_path!r}; choose one of {', '.join(FAST_PATHS)}.")
    return fast_path


def worth_it(fast_path: str, device: torch.device, *, again: bool) -> bool:
    """Whether work of one shape is compiled and captured: the rule of `fast_path`.

    "auto" does so on a CUDA device, for the second request of a shape or when the caller expects many, so that a first
    answer never waits for a compiler. "on" does so at the first request.

    Args:
        again: whether this shape was requested before, or the caller expects repeated work.

    Raises:
        ValueError: if `fast_path` is "on" and the device is not a CUDA device.
    """
    if fast_path == "on" and device.type != "cuda":
        raise ValueError(f'fast_path="on" needs a CUDA device, and the world model is on {device}; use "auto".')
    return fast_path == "on" or (fast_path == "auto" and device.type == "cuda" and again)


def can_compile() -> bool:
    """Whether torch.compile can make kernels here: it needs Triton and a C compiler."""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang")))


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, compiled as one graph for each shape; call it inside `compiling`."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def compiling() -> AbstractContextManager[Any]:
    """A context in which one compiled function may have MAX_SHAPES shapes."""
    import torch._dynamo.config as dynamo

    return dynamo.patch(recompile_limit=MAX_SHAPES)


def storages(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Addresses of tensors; a graph is valid as long as they are the same."""
    return tuple(tensor.data_ptr() for tensor in tensors)


class Graphs:
    """Captures functions on one CUDA device, with one stream and one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Runs `function` three times, captures it, and returns what replays it on the caller's stream.

        `function` must not draw random numbers, copy from the host or wait for the device.
        """
        with torch.cuda.device(self.device), compiling():
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UP_CALLS):
                    function()
            current.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads, such as a data loader's, may use the device meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                function()
        return graph.replay


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
