"""The loss of a frozen language model, and its gradient with respect to the embeddings, by groups of rows.

If only the projector is trained, nothing before the first world token has a gradient. The layers read that prefix
without one, and what follows, which is causal, reads the keys and values of the prefix. The gradient is computed
together with the loss, so that a batch needs the memory of one group of its rows. The rows of a group are packed
without padding between them, so that few shapes occur: layers are compiled one by one, and the call for a group is one
CUDA graph.

Shapes: B rows of L tokens; a group has U tokens of prefixes and N tokens that follow them, R rows, M labelled tokens;
D width; heads H, and H_kv of keys and values, of width d.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, Gemma3ForConditionalGeneration, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from theworld.compilation import compile_function, compiling
from theworld.cuda_graphs import CudaGraphs
from theworld.model import gemma_layers
from theworld.model.gemma_layers import SHARED
from theworld.model.packing import Layout, Plan, describe_rows, loss_scale, plan_batch, shift
from theworld.model.placeholders import IGNORE_INDEX, Tokens

logger = logging.getLogger(__name__)

ATTENTION = "theworld_packed"
GROUP_TOKENS = 4096  # enough for efficient matrix products; 11 GB of activations in Gemma 3 4B
CHECKS = 4  # groups of each shape
MAX_ROW_ERROR, MAX_WRONG_ROWS, SMALL_ROW = 0.3, 0.01, 1e-3  # in bfloat16 rows differ by 0.03 to 0.04


# ------------------------------------------------------------------------------------------------------------ attention


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    starts: Tensor | None = None,
    longest: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each of the packed rows, within the sliding window; with a mask, transformers' own.

    It has transformers' interface for attention functions. FlashAttention computes it on a GPU in 16 bits.

    Args:
        query: (1, H, N, d), the last tokens of each row.
        key, value: (1, H_kv, R·U + N, d), all tokens of each row.
        starts: (2, rows + 1) int32, the first query and the first key of each row, and the end; see `varlen_attn`.
        longest: most queries and most keys of a row.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    assert starts is not None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        # contiguous, because the gradients that the operator returns are, whatever the strides that torch.compile sees
        query, key, value = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        lengths = {"max_q": longest[0], "max_k": longest[1], "scale": scaling, "window_size": window, **SHARED}
        read: Any = varlen_attn(query, key, value, starts[0], starts[1], **lengths)
        return read[None], None
    queries = torch.arange(query.shape[2], device=query.device)
    keys = torch.arange(key.shape[2], device=query.device)
    rows = [torch.searchsorted(start, place, right=True) for start, place in zip(starts, (queries, keys), strict=True)]
    distance = (queries - starts[0][rows[0]])[:, None] - (keys - starts[1][rows[1]])  # from the ends of the rows
    mask = (rows[0][:, None] == rows[1]) & (distance >= 0)
    if sliding_window is not None:
        mask &= distance < sliding_window
    return sdpa_attention_forward(module, query, key, value, mask[None, None], scaling=scaling, **kwargs)


AttentionInterface.register(ATTENTION, packed_attention)


@contextmanager
def attention_of(config: PreTrainedConfig) -> Iterator[None]:
    """A context in which the layers of this config use `packed_attention`."""
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


class Permute(torch.autograd.Function):
    """Permutes dimension 2; the gradient is permuted back, while that of indexing would be summed token by token."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tensor.index_select(2, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(2, inverse), None, None


class Select(torch.autograd.Function):
    """Selects tokens (N, D); each place gets the gradient of the one selection that `of_place` names.

    That of indexing is added with atomic operations, since indices may repeat.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Tensor, of_place: Tensor) -> Tensor:
        ctx.save_for_backward(of_place)
        return tensor.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_place,) = ctx.saved_tensors
        return nn.functional.pad(gradients[0], (0, 0, 0, 1)).index_select(0, of_place), None, None


class PrefixCache:
    """In the place of transformers' cache: keeps the keys and values (R, H_kv, U, d) of one layer."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *arguments: Any) -> tuple[Tensor, Tensor]:
        self.kept = key, value
        return key, value


class AfterPrefix:
    """In the place of transformers' cache: adds the keys and values of one layer to those of the prefixes."""

    def __init__(self, kept: tuple[Tensor, Tensor], order: Tensor, inverse: Tensor) -> None:
        self.kept = kept
        self.order = order
        self.inverse = inverse

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *arguments: Any) -> tuple[Tensor, Tensor]:
        before = (tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in self.kept)  # (1, H_kv, R·U, d)
        joined = (torch.cat(both, dim=2) for both in zip(before, (key, value), strict=True))
        key, value = (Permute.apply(tensor, self.order, self.inverse) for tensor in joined)
        return key, value


# --------------------------------------------------------------------------------------------------------------- layers


def prefix_layer(layer: Any, hidden: Tensor, rotary: Any, mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A layer's output (R, U, D) and its keys and values."""
    cache = PrefixCache()
    read = layer.forward(hidden, position_embeddings=rotary, attention_mask=mask, past_key_values=cache)
    assert cache.kept is not None
    return read, cache.kept


def following_layer(layer: Any, hidden: Tensor, rotary: Any, cache: AfterPrefix, rows: dict[str, Any]) -> Tensor:
    """A layer's output (1, N, D)."""
    read: Tensor = layer.forward(hidden, position_embeddings=rotary, attention_mask=None, past_key_values=cache, **rows)
    return read


def last_layer(
    layer: Any, hidden: Tensor, rotary: Any, cache: AfterPrefix, rows: dict[str, Any], *labelled: Tensor
) -> Tensor:
    """The last layer's output (M, D) at the labelled tokens; see `Select`."""
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden),
        position_embeddings=rotary,
        attention_mask=None,
        past_key_values=cache,
        **rows,
    )
    hidden, attended = (Select.apply(tensor[0], *labelled) for tensor in (hidden, attended))
    read: Tensor = hidden + layer.post_attention_layernorm(attended)
    return read + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(read)))


def recomputed_layer(*arguments: Any) -> Tensor:
    """`following_layer`, whose activations are computed again for the gradient instead of kept."""
    read: Tensor = checkpoint(following_layer, *arguments, use_reentrant=False)
    return read


PLAIN_LAYERS: Sequence[Callable[..., Any]] = (prefix_layer, following_layer, last_layer)
COMPARED_LAYERS = (prefix_layer, recomputed_layer, last_layer)  # plain layers keep more than compiled ones


def share_of_wrong_rows(found: Tensor, expected: Tensor) -> float:
    """Share of the rows of a gradient (N, D) that are no numbers or far from the expected ones.

    Rows whose gradient is nearly zero, such as those at unused places, do not count.
    """
    size = expected.float().norm(dim=1)
    counted = size > SMALL_ROW * size[size > 0].median()
    if not counted.any():
        return 0.0
    wrong = ~((found.float() - expected.float()).norm(dim=1) <= MAX_ROW_ERROR * size)
    return float((wrong & counted).sum() / counted.sum())


class FrozenLoss:
    """Cross-entropy of the labels under a frozen Gemma 3, for training what comes before it.

    Args:
        vlm: the model, whose language model has no trainable parameters.
        compiled: compiles the layers.
        graphs: records each group as a CUDA graph, the second time that its shape occurs.
        group_tokens: number of tokens after the prefixes from which a batch is divided.
    """

    def __init__(
        self,
        vlm: Gemma3ForConditionalGeneration,
        compiled: bool = True,
        graphs: bool = True,
        group_tokens: int = GROUP_TOKENS,
    ) -> None:
        self.language_model: Any = vlm.model.language_model
        self.head: Any = vlm.lm_head
        self.group_tokens = group_tokens
        self.layers: Sequence[Any] = PLAIN_LAYERS
        if compiled:
            self.layers = [compile_function(layer, fullgraph=False) for layer in PLAIN_LAYERS]
        self.group: Callable[..., Any] = CudaGraphs(self.loss_and_gradient) if graphs else self.loss_and_gradient
        self.checked: Counter[Any] = Counter()  # groups of each shape that were compared with the plain layers

    def prepare(
        self,
        world: Tensor,
        labels: Tensor | None = None,
        skip_logits: bool = False,
        attention_mask: Any = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
        on_host: Tokens | None = None,
        **others: Any,
    ) -> Callable[[Tensor], Tensor] | None:
        """What computes the loss of a batch from its embeddings (B, L, D), or None if it cannot be computed here.

        Args:
            world: (B, L) bool, the world placeholders; on the CPU if `on_host` is given.
            others: further arguments of `TheWorldForConditionalGeneration.forward`, which are described there.
        """
        plain = isinstance(attention_mask, Tensor) and position_ids is None and past_key_values is None
        if not (skip_logits and plain and torch.is_grad_enabled()) or label_smoothing or labels is None:
            return None
        tokens = on_host or Tokens(world, attention_mask, token_type_ids, labels)
        assert tokens.labels is not None
        images = torch.zeros_like(world) if tokens.token_type_ids is None else tokens.token_type_ids == 1
        rows = describe_rows(world, shift(tokens.labels), images, tokens.attention_mask)
        if not all(0 < row.prefix < row.length and row.images_end <= row.prefix for row in rows):
            return None  # attention is causal only after the last image
        targets = shift(labels)
        types = torch.zeros_like(labels) if token_type_ids is None else token_type_ids
        return partial(
            LossWithGradient.apply,
            plan_batch(rows, targets, gemma_layers.image_blocks(types), self.group_tokens),
            self,
            torch.as_tensor(loss_scale(targets, num_items_in_batch), dtype=torch.float32, device=labels.device),
        )

    @torch.no_grad()
    def loss_of(self, plan: Plan, scale: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies times `scale`, and its gradient (B, L, D) for embeds (B, L, D)."""
        flat = nn.functional.pad(embeds.flatten(0, 1), (0, 0, 0, 1))
        gradient = torch.zeros_like(flat)
        losses = []
        with attention_of(self.language_model.config), compiling():
            for layout in plan.layouts:
                inputs = flat[layout.prefix], flat[layout.following], scale, *layout[2:]
                loss, own = self.checked_group(*inputs, longest=plan.longest)
                losses.append(loss.clone())
                gradient[layout.following] = own
        return torch.stack(losses).sum(), gradient[:-1].view_as(embeds)

    def checked_group(self, *inputs: Tensor, longest: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Loss () and gradient (N, D) of a group, which are compared with the plain layers' for the first groups.

        Compilers have bugs, and some show only when memory is used again, so CHECKS groups of each shape are compared:
        the call as it is, its recording and its replays. If one differs, the plain layers are used from then on, with a
        warning.
        """
        loss, own = self.group(*inputs, longest=longest)
        shapes = (*(tensor.shape for tensor in inputs), longest)
        if self.layers is PLAIN_LAYERS or self.checked[shapes] == CHECKS:
            return loss, own
        self.checked[shapes] += 1
        compiled, self.layers = self.layers, COMPARED_LAYERS
        loss, expected = self.loss_and_gradient(*inputs, longest=longest)
        share = share_of_wrong_rows(own, expected)
        if share <= MAX_WRONG_ROWS:
            self.layers = compiled
            return loss, own
        self.group, self.layers = self.loss_and_gradient, PLAIN_LAYERS
        logger.warning(
            "the compiled layers give other gradients than the plain ones for %.1f %% of the tokens, so the plain ones "
            "are used, which are slower; set fast_path to off, or try another version of torch",
            100 * share,
        )
        return loss, expected

    def loss_and_gradient(
        self, prefix: Tensor, following: Tensor, scale: Tensor, *layout: Tensor, longest: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Loss () and gradient (N, D) of one group.

        Args:
            prefix, following: (R·U, D), (N, D) embeddings.
            scale: () float32.
            layout: all fields of `Layout` but the first two.
            longest: see `Plan`.
        """
        place = Layout(prefix, following, *layout)
        model = self.language_model
        read_prefix, read_following, read_last = self.layers
        kinds = model.config.layer_types
        R, U = place.blocks.shape
        places = torch.arange(U, device=prefix.device)
        window = model.config.sliding_window
        masks = gemma_layers.masks(places.expand(R, U), places, window, (place.blocks, place.blocks))
        before, after = (
            {kind: model.rotary_emb(prefix, positions[None], kind) for kind in set(kinds)}
            for positions in (places, place.positions)
        )
        rows = {"starts": place.starts, "longest": longest}
        kept = []
        with torch.no_grad():
            hidden = prefix.view(R, U, -1)
            for layer, kind in zip(model.layers, kinds, strict=True):
                hidden, pair = read_prefix(layer, hidden, before[kind], masks[kind])
                kept.append(AfterPrefix(pair, place.order, place.inverse))
        following = following.detach()[None].requires_grad_()
        with torch.enable_grad():
            hidden = following
            for layer, kind, cache in zip(model.layers[:-1], kinds[:-1], kept[:-1], strict=True):
                hidden = read_following(layer, hidden, after[kind], cache, rows)
            hidden = read_last(
                model.layers[-1], hidden, after[kinds[-1]], kept[-1], rows, place.labelled, place.of_place
            )
            logits = self.head(model.norm(hidden)).float()  # (M, V)
            loss = nn.functional.cross_entropy(logits, place.targets, ignore_index=IGNORE_INDEX, reduction="sum")
            loss = loss * scale
            (gradient,) = torch.autograd.grad(loss, following)
        return loss.detach(), gradient[0]


class LossWithGradient(torch.autograd.Function):
    """A loss whose gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, frozen: FrozenLoss, scale: Tensor, embeds: Tensor) -> Tensor:
        loss, gradient = frozen.loss_of(plan, scale, embeds.detach())
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, None, None, gradient * gradients[0].to(gradient.dtype)
