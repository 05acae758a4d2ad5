"""Attention of whole prompts by flex attention; only imported where it is used, since it imports the compiler."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def flex_masks(blocks_BL: Tensor, window: int) -> dict[str, BlockMask]:
    """`masks` of prompts that start at slot 0, as flex attention takes them."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block = blocks_BL[row, query]
        return (query >= key) | ((block >= 0) & (block == blocks_BL[row, key]))

    def sees_near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(row, head, query, key) & (query - key < window)

    batch, length = blocks_BL.shape
    return {
        kind: create_block_mask(rule, batch, None, length, length, device=str(blocks_BL.device))
        for kind, rule in (("full_attention", sees), ("sliding_attention", sees_near))
    }


def flex(query: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Flex attention, which skips blocks of 128 by 128 tokens that do not see each other."""
    mixed: Any = flex_attention(query, keys, values, block_mask=mask, scale=scale, enable_gqa=True)
    return mixed
