"""A function without arguments as a CUDA graph: recorded once, replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP_CALLS = 3  # compilation, choice of kernels and allocation happen before the recording


class CapturedStep:
    """Replays a function that reads and writes static tensors only.

    Args:
        function: run several times and recorded; it may neither copy from the host nor synchronise.
        pool: memory pool that graphs share which never run at the same time, from `torch.cuda.graph_pool_handle()`.
    """

    def __init__(self, function: Callable[[], None], device: torch.device, pool: Any) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            # other threads may use the GPU meanwhile, as the one that reads a stream does
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                function()

    def __call__(self) -> None:
        self.graph.replay()
