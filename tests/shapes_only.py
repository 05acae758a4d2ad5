"""Models of published size without their memory: every operation runs on shapes, and live bytes are counted.

Under FakeTensorMode a number inside a tensor cannot be read, so what reads one is replaced while `shapes_only` lasts:
checks of values, random initialisation, and the scatter of features over placeholders. Attention is replaced by what
CUDA's kernels keep: query, key, value, output, a sum a row, and with a mask the mask as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from theworld.model import modeling
from theworld.model.configuration import TheWorldConfig
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.projector import WorldProjector
from theworld.world_models import cosmos_predict2


class Kernel(torch.autograd.Function):
    """Attention as CUDA's kernels take memory."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, *(() if bias is None else (bias,)))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Any:
    bias = None if attn_mask is None else torch.empty_like(attn_mask, dtype=query.dtype)
    return Kernel.apply(query, key, value, bias)


def find_placeholders(input_ids: Tensor, device: torch.device, *token_ids: int) -> list[Tensor]:
    return [input_ids == token_id for token_id in token_ids]


def scatter(embeds: Tensor, placeholders: Tensor, features: Tensor, kind: str) -> Tensor:
    return embeds.masked_scatter(placeholders.unsqueeze(-1), features.to(embeds))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, tensors have shapes and no numbers, and models of any size can be built and run."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # counting sees its own thread only
        for target, name, stand_in in (
            (modeling, "find_placeholders", find_placeholders),
            (modeling, "scatter", scatter),
            (WorldProjector, "reset_parameters", lambda *_, **__: None),
            (TheWorldForConditionalGeneration, "text_embedding_rms", lambda _: 1.0),
            (cosmos_predict2, "check_frames", lambda *_: None),
            (cosmos_predict2, "new_scheduler", lambda _: None),
            (torch.nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor),
            (torch.nn.functional, "scaled_dot_product_attention", attention),
        ):
            stack.enter_context(patch.object(target, name, stand_in))
        yield


def build(config: TheWorldConfig, parts: tuple[str, ...]) -> TheWorldForConditionalGeneration:
    """The model in bfloat16, with these parts of the world model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return TheWorldForConditionalGeneration(config, world_parts=parts).eval()
    finally:
        torch.set_default_dtype(before)


def inputs(config: TheWorldConfig, length: int, batch: int = 1, images: int = 1) -> dict[str, Tensor]:
    """What Gemma's processor makes of prompts of this length with this number of images each."""
    side = config.vlm_config.vision_config.image_size
    ids = torch.zeros(batch, length, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": torch.empty(batch * images, 3, side, side),
    }
