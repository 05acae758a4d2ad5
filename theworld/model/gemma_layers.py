"""Gemma 3's language model on static buffers of keys and values: the pieces that fast generation compiles.

A token's slot in the buffers is its position, so rows of different lengths need no padding on the left. A slot that no
token has been written to yet lies after every token of its row, where causal attention does not look.

Shapes: B prompts, L new tokens, S slots of the buffers, D width, H heads, G key/value heads, E width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers.models.gemma3.modeling_gemma3 import rotate_half

# (query (B, H, L, E), keys and values (B, G, S, E), mask, scale) -> (B, H, L, E)
Attention = Callable[[Tensor, Tensor, Tensor, Any, float], Tensor]

# newer versions of torch want to be told that heads share keys
SHARED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


class LayerInputs(NamedTuple):
    """What all layers of one type read besides the hidden states: rotary factors (B, L, 1, E) and who sees whom."""

    cos: Tensor
    sin: Tensor
    mask: Any  # (B, 1, L, S) bool, True where a token sees a slot; or a PromptMask


class PromptMask(NamedTuple):
    """Who sees whom in prompts that start at slot 0: after the last image, U tokens in, attention is causal.

    Attributes:
        prefix: (B, 1, U, U) bool, or None if there are no images.
        rest: (1, 1, L - U, L) bool; None if flash attention computes it.
        starts: (2, B + 1) int32, the first query and the first key of each row, and the end; see `varlen_attn`.
        window: of a sliding layer for flash attention, otherwise 0.
    """

    prefix: Tensor | None
    rest: Tensor | None
    starts: Tensor
    window: int


class FusedWeights(NamedTuple):
    """Weights of one layer whose products have the same input: views of them, one after the other."""

    query_key_value: Tensor
    gate_up: Tensor


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
    fused: FusedWeights | None = None,
) -> Tensor:
    """One of Gemma's layers; its keys and values are written at `positions_BL` of the buffers.

    Args:
        from_buffers: whether the tokens attend to the buffers; False for a prompt that starts at slot 0, where the new
            keys and values are all that there are.
        fused: the layer's weights, to read them in fewer products.
    """
    attend = layer.self_attn
    normed = layer.input_layernorm(hidden_BLD)
    if fused is None:
        projected = attend.q_proj(normed), attend.k_proj(normed), attend.v_proj(normed)
    else:
        sizes = [each.out_features for each in (attend.q_proj, attend.k_proj, attend.v_proj)]
        projected = F.linear(normed, fused.query_key_value).split(sizes, dim=-1)
    query, key, value = (each.unflatten(-1, (-1, attend.head_dim)) for each in projected)
    query, key = rotated(attend.q_norm(query), inputs), rotated(attend.k_norm(key), inputs)
    keys_BGSE[rows_B1, :, positions_BL] = key
    values_BGSE[rows_B1, :, positions_BL] = value
    key, value = (keys_BGSE, values_BGSE) if from_buffers else (key.transpose(1, 2), value.transpose(1, 2))
    mixed = attention(query.transpose(1, 2), key, value, inputs.mask, attend.scaling)
    mixed = attend.o_proj(mixed.transpose(1, 2).reshape(*hidden_BLD.shape[:2], -1))
    hidden_BLD = hidden_BLD + layer.post_attention_layernorm(mixed)
    normed = layer.pre_feedforward_layernorm(hidden_BLD)
    if fused is None:
        read = layer.mlp(normed)
    else:
        gate, up = F.linear(normed, fused.gate_up).chunk(2, dim=-1)
        read = layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
    output: Tensor = hidden_BLD + layer.post_feedforward_layernorm(read)
    return output


def keys_and_values(
    layer: Any,
    hidden_BLD: Tensor,
    inputs: LayerInputs,
    keys_BGSE: Tensor,
    values_BGSE: Tensor,
    rows_B1: Tensor,
    positions_BL: Tensor,
) -> None:
    """The part of `decoder_layer` that later tokens need of the last layer."""
    attend = layer.self_attn
    normed = layer.input_layernorm(hidden_BLD)
    key, value = (each(normed).unflatten(-1, (-1, attend.head_dim)) for each in (attend.k_proj, attend.v_proj))
    keys_BGSE[rows_B1, :, positions_BL] = rotated(attend.k_norm(key), inputs)
    values_BGSE[rows_B1, :, positions_BL] = value


def fuse(layer: Any) -> FusedWeights | None:
    """Makes the weights of a layer views of larger tensors, if it has no LoRA and no biases there."""
    attend, mlp = layer.self_attn, layer.mlp
    fused = []
    for products in ((attend.q_proj, attend.k_proj, attend.v_proj), (mlp.gate_proj, mlp.up_proj)):
        if any(type(each) is not nn.Linear or each.bias is not None for each in products):
            return None
        whole = torch.cat([each.weight.detach() for each in products])
        for each, part in zip(products, whole.split([each.out_features for each in products]), strict=True):
            each.weight.data = part
        fused.append(whole)
    return FusedWeights(*fused)


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


def prompt_masks(blocks_BU: Tensor, length: int, window: int, flash: bool) -> dict[str, PromptMask]:
    """`masks` of prompts of `length` tokens that start at slot 0, with image blocks in the first U < length of them.

    Args:
        flash: whether flash attention computes what comes after the first U.
    """
    batch, first = blocks_BU.shape
    place = torch.arange(length, device=blocks_BU.device)
    sizes = {"full_attention": 0, "sliding_attention": window}
    prefix: Mapping[str, Tensor | None] = dict.fromkeys(sizes)
    rest: Mapping[str, Tensor | None] = dict.fromkeys(sizes)
    if first:
        prefix = masks(place[:first].expand(batch, -1), place[:first], window, (blocks_BU, blocks_BU))
    if not flash:
        rest = masks(place[None, first:], place, window)
    row = torch.arange(batch + 1, device=blocks_BU.device, dtype=torch.int32)
    starts = torch.stack([row * (length - first), row * length])
    return {kind: PromptMask(prefix[kind], rest[kind], starts, size * flash) for kind, size in sizes.items()}


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


def prompt_attention(query: Tensor, keys: Tensor, values: Tensor, mask: PromptMask, scale: float) -> Tensor:
    """Attention of prompts that start at slot 0 (S = L): with a mask up to the last image, then causal."""
    first = 0 if mask.prefix is None else mask.prefix.shape[-1]
    parts = []
    if mask.prefix is not None:
        q, k, v = (each[:, :, :first] for each in (query, keys, values))
        parts.append(repeated_sdpa(q, k, v, mask.prefix, scale))
    if mask.rest is not None:
        parts.append(repeated_sdpa(query[:, :, first:], keys, values, mask.rest, scale))
    else:
        parts.append(flash_attention(query[:, :, first:], keys, values, mask.starts, mask.window, scale))
    return torch.cat(parts, dim=2)


def flash_attention(query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, window: int, scale: float) -> Tensor:
    """Causal attention of the last tokens of each row, of which a sliding layer skips what is out of its window."""
    q, k, v = (each.transpose(1, 2).flatten(0, 1).contiguous() for each in (query, keys, values))
    reach = (window - 1 if window else -1, 0)
    lengths = query.shape[2], keys.shape[2]
    mixed: Any = varlen_attn(q, k, v, starts[0], starts[1], *lengths, scale=scale, window_size=reach, **SHARED)
    return mixed.unflatten(0, (query.shape[0], -1)).transpose(1, 2)


def can_flash(tensor: Tensor) -> bool:
    """Whether flash attention reads tensors like this one."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


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
