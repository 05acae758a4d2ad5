"""Attention in both directions inside images for vLLM's CPU engine, which has only causal attention for prompts.

The causal result of all tokens is computed first, by vLLM's own kernel. Then the rows of Gemma's image tokens are
computed a second time, by the same kernel without the causal mask, with the keys up to the end of their image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from theworld.model.configuration import TheWorldConfig
from theworld.serving.vllm.blocks import image_ranges

logger = logging.getLogger(__name__)


@dataclass
class ImageBlockMetadata(CPUAttentionMetadata):
    """vLLM's metadata of a batch, and that of the image tokens in it, `rows` of the batch."""

    rows: Tensor | None = None  # int64
    images: CPUAttentionMetadata | None = None


class ImageBlockBuilder(CPUAttentionMetadataBuilder):
    """Builds the metadata of a batch and of the images in it."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> ImageBlockMetadata:
        causal = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata = ImageBlockMetadata(**vars(causal))
        config = self.vllm_config.model_config.hf_config
        ranges = common_attn_metadata.mm_req_doc_ranges
        if ranges and isinstance(config, TheWorldConfig):
            rows, images = images_of(common_attn_metadata, image_ranges(ranges, config))
            if images is not None:
                metadata.rows, metadata.images = rows, super().build(0, images, fast_build)
        return metadata


def images_of(
    batch: CommonAttentionMetadata, blocks: dict[int, list[tuple[int, int]]]
) -> tuple[Tensor, CommonAttentionMetadata | None]:
    """The rows of a batch that are image tokens, and these as a batch of its own whose requests are the images.

    An image whose first tokens were computed earlier, for another request with the same beginning, has the rest here.
    """
    starts, lengths = batch.query_start_loc_cpu.tolist(), batch.seq_lens.tolist()
    rows: list[int] = []
    counts: list[int] = []
    requests: list[int] = []
    ends: list[int] = []
    for request, found in blocks.items():
        new = starts[request + 1] - starts[request]
        seen = lengths[request] - new
        for first, last in found:
            if last < seen or first >= lengths[request]:
                continue
            if last >= lengths[request]:  # only where a prefix in the cache ended inside the image, too
                logger.warning("An image is computed in two steps, so its first tokens do not see its last ones.")
            begin, last = max(first, seen), min(last, lengths[request] - 1)
            rows.extend(range(starts[request] + begin - seen, starts[request] + last + 1 - seen))
            counts.append(last + 1 - begin)
            requests.append(request)
            ends.append(last + 1)
    indices = torch.tensor(rows, dtype=torch.int64)
    if not rows:
        return indices, None
    offsets = torch.tensor([0, *accumulate(counts)], dtype=batch.query_start_loc.dtype)
    return indices, replace(
        batch,
        query_start_loc=offsets,
        query_start_loc_cpu=offsets,
        seq_lens=torch.tensor(ends, dtype=batch.seq_lens.dtype),
        num_reqs=len(counts),
        num_actual_tokens=len(rows),
        max_query_len=max(counts),
        max_seq_len=max(ends),
        block_table_tensor=batch.block_table_tensor[requests],
        slot_mapping=batch.slot_mapping[indices],
        causal=False,
        mm_req_doc_ranges=None,
    )


class ImageBlockAttention(CPUAttentionBackendImpl):
    """vLLM's attention on a CPU, with image tokens that attend to the whole of their image."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        *scales: Any,
        **named_scales: Any,
    ) -> Tensor:
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **named_scales)
        if isinstance(attn_metadata, ImageBlockMetadata) and attn_metadata.images is not None:
            rows = attn_metadata.rows
            inside = torch.empty_like(output[rows])
            super().forward(layer, query[rows], key[rows], value[rows], kv_cache, attn_metadata.images, inside)
            output[rows] = inside
        return output


class ImageBlockBackend(CPUAttentionBackend):
    """vLLM's backend for CPUs, which reads the images of fused models as Gemma 3 does."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return ImageBlockAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return ImageBlockBuilder

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        return True
