"""Causal attention of world tokens where vLLM's attention reads blocks of images in both directions by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata, subclass_attention_backend

from theworld.serving.vllm.blocks import image_ranges


@cache
def causal_world_tokens(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """A backend that is told of Gemma's image blocks alone, not of the world tokens after them."""
    builder: Any = backend.get_builder_cls()

    class Builder(builder):
        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
        ) -> Any:
            ranges = common_attn_metadata.mm_req_doc_ranges
            if ranges:
                blocks = image_ranges(ranges, self.vllm_config.model_config.hf_config)
                common_attn_metadata = replace(common_attn_metadata, mm_req_doc_ranges=blocks)
            return super().build(common_prefix_len, common_attn_metadata, fast_build)

    return subclass_attention_backend("CausalWorldTokens", backend, Builder)
