"""World transformers whose weights wait in CPU memory: `world_model_offload`."""

from __future__ import annotations

import torch
from torch import nn


def offload_transformer(transformer: nn.Module, device: torch.device) -> None:
    """Lets the weights of a transformer wait in pinned CPU memory, from which each block is copied when it runs.

    The next block is copied while one runs, so that two blocks are on the device at once.
    """
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        transformer,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
