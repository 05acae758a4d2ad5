"""Gemma 3's language model on static buffers of keys and values: the pieces that fast generation compiles.

A token's slot in the buffers is its position, so rows of different lengths need no padding on the left. A slot that no
token has been written to yet lies after every token of its row, where causal attention does not look.

Shapes: B prompts, L new tokens, S slots of the buffers, D width, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.gemma3.modeling_gemma3 import rotate_half

# (query (B, H, L, E), keys and values (B, G, S, E), mask, scale) -> (B, H, L, E)
Attention = Callable[[Tensor, Tensor, Tensor, Any, float], Tensor]


class LayerInputs(NamedTuple):
    """What all layers of one type read besides the hidden states: rotary factors (B, L, 1, E) and who sees whom."""

    cos: Tensor
    sin: Tensor
    mask: Any  # (B, 1, L, S) bool, True where a token sees a slot; or what flex attention takes instead


def decoder_layer(
    layer: Any,
    hidden_BLD: Tensor,
    inputs: LayerInputs,
    keys_BGSE: Tensor,
    values_BGSE: Tensor,
    rows_B1: Tensor,
    positions_BL: Tensor,
    attention: Attention,
    from_buffers: bool,
) -> Tensor:
    """One of Gemma's layers; its keys and values are written at `positions_BL` of the buffers.

    Args:
        from_buffers: whether the tokens attend to the buffers; False for a prompt that starts at slot 0, where the new
            keys and values are all that there are.
    """
    attend = layer.self_attn
    normed = layer.input_layernorm(hidden_BLD)
    shape = (*hidden_BLD.shape[:2], -1, attend.head_dim)
    query = rotated(attend.q_norm(attend.q_proj(normed).view(shape)), inputs)
    key = rotated(attend.k_norm(attend.k_proj(normed).view(shape)), inputs)
    value = attend.v_proj(normed).view(shape)
    keys_BGSE[rows_B1, :, positions_BL] = key
    values_BGSE[rows_B1, :, positions_BL] = value
    key, value = (keys_BGSE, values_BGSE) if from_buffers else (key.transpose(1, 2), value.transpose(1, 2))
    mixed = attention(query.transpose(1, 2), key, value, inputs.mask, attend.scaling)
    mixed = attend.o_proj(mixed.transpose(1, 2).reshape(*hidden_BLD.shape[:2], -1))
    hidden_BLD = hidden_BLD + layer.post_attention_layernorm(mixed)
    normed = layer.pre_feedforward_layernorm(hidden_BLD)
    output: Tensor = hidden_BLD + layer.post_feedforward_layernorm(layer.mlp(normed))
    return output


def rotated(heads: Tensor, inputs: LayerInputs) -> Tensor:
    """Queries or keys (B, L, heads, E) with their rotary positions."""
    return heads * inputs.cos + rotate_half(heads) * inputs.sin


def rotary_factors(language_model: Any, hidden_BLD: Tensor, positions_BL: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines (B, L, 1, E) of each type of layer."""
    factors = {}
    for kind in sorted(set(language_model.config.layer_types)):
        cos, sin = language_model.rotary_emb(hidden_BLD, positions_BL, kind)
        factors[kind] = cos.unsqueeze(2), sin.unsqueeze(2)
    return factors


def masks(
    positions_BL: Tensor, slots_S: Tensor, window: int, blocks: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Who sees whom, (B, 1, L, S) bool, for each type of layer.

    Args:
        window: a token of a sliding layer sees this many positions, its own included.
        blocks: ids of the image blocks of the tokens (B, L) and slots (B, S), -1 for text; tokens of one block see each
            other in both directions.
    """
    distance = positions_BL[:, :, None] - slots_S
    seen = distance >= 0
    if blocks is not None:
        of_tokens, of_slots = blocks[0][:, :, None], blocks[1][:, None, :]
        seen = seen | ((of_tokens == of_slots) & (of_tokens >= 0))
    return {"full_attention": seen[:, None], "sliding_attention": (seen & (distance < window))[:, None]}


def image_blocks(token_type_ids: Tensor) -> Tensor:
    """Ids of contiguous image blocks (B, L), counted from 0 in each row; -1 for text."""
    is_image = token_type_ids == 1
    starts = is_image & ~F.pad(is_image, (1, 0))[:, :-1]
    return torch.where(is_image, starts.cumsum(dim=1) - 1, -1)


# ----------------------------------------------------------------------------------------------------------- attention


def repeated_sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """torch's attention with keys repeated for the heads that share them: its fast kernels want a mask or sharing."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(groups, dim=1) for each in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


def folded_sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """torch's attention for one token (L = 1): the heads that share keys stand in the query's length."""
    folded = query.reshape(*keys.shape[:2], -1, query.shape[-1])
    return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale).reshape(query.shape)


def shared_sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """torch's attention, which is told that heads share keys."""
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def matmul_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Two matrix products for one token (L = 1); the softmax is float32."""
    folded = query.reshape(*keys.shape[:2], -1, query.shape[-1])  # (B, G, H/G, E)
    scores = (folded @ keys.transpose(2, 3)).float() * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(values.dtype)
    return (weights @ values).reshape(query.shape)


def reduced_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Sums of products for one token (L = 1), which the compiler turns into reductions; all of it is float32."""
    folded = query.reshape(*keys.shape[:2], -1, 1, query.shape[-1]).float()  # (B, G, H/G, 1, E)
    scores = (folded * keys.unsqueeze(2)).sum(dim=-1) * scale  # (B, G, H/G, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    mixed = (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(dim=-2)
    return mixed.to(query.dtype).reshape(query.shape)


DECODE_ATTENTION: Mapping[str, Attention] = {
    "matmul": matmul_attention,
    "reduced": reduced_attention,
    "folded": folded_sdpa,
    "shared": shared_sdpa,
    "repeated": repeated_sdpa,
}
