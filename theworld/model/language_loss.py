"""Gemma's forward pass with logits only where they are needed: at labels, or at given positions.

The vocabulary has 262,208 entries, so that logits (B, L, V) of a training batch would take more memory than the model.

Shapes: B rows of L tokens, M labelled or given positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Gemma3ForConditionalGeneration
from transformers.models.gemma3.modeling_gemma3 import Gemma3CausalLMOutputWithPast

from theworld.model import lora
from theworld.model.packing import loss_scale, shift
from theworld.model.placeholders import IGNORE_INDEX

CHUNK = 1024  # labels whose logits are in memory at a time: 3 GB in 16 bits with their float32 copies


def call_language(vlm: Gemma3ForConditionalGeneration, **inputs: Any) -> Gemma3CausalLMOutputWithPast:
    """Gemma's output; see `TheWorldForConditionalGeneration.forward` for the arguments.

    No other thread disables the LoRA meanwhile.

    Raises:
        ValueError: if `skip_logits` comes without labels.
    """
    with lora.held(vlm.model.language_model):
        return _call_language(vlm, **inputs)


def _call_language(
    vlm: Gemma3ForConditionalGeneration,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    skip_logits: bool,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
    **inputs: Any,
) -> Gemma3CausalLMOutputWithPast:
    if skip_logits:
        if labels is None:
            raise ValueError("skip_logits returns only the loss, which needs labels.")
        targets = shift(labels)
        labelled = targets != IGNORE_INDEX
        hidden = vlm.model(**inputs).last_hidden_state[labelled]
        loss = chunked_loss(vlm.lm_head, hidden, targets[labelled], label_smoothing)
        return Gemma3CausalLMOutputWithPast(loss=loss * loss_scale(targets, num_items_in_batch))
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.dtype == torch.bool:
        hidden = vlm.model(**inputs).last_hidden_state
        return Gemma3CausalLMOutputWithPast(logits=vlm.lm_head(hidden[logits_to_keep]))
    if num_items_in_batch is not None:
        inputs["num_items_in_batch"] = num_items_in_batch
    return vlm(labels=labels, logits_to_keep=logits_to_keep, **inputs)


def chunked_loss(head: nn.Module, hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Sum of the cross-entropies of hidden states (M, D); logits beyond one chunk are computed again for gradients."""

    def of(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden).float()
        return nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)

    if hidden.shape[0] <= CHUNK:
        return of(hidden, targets)
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.stack([checkpoint(of, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def with_unused(outputs: Gemma3CausalLMOutputWithPast, unused: Sequence[Tensor]) -> Gemma3CausalLMOutputWithPast:
    """The same outputs, whose loss or logits depend on unused tensors as well; see `forward`."""
    for tensor in unused:
        name = "loss" if outputs.logits is None else "logits"
        outputs[name] = outputs[name] + 0.0 * tensor.sum()
    return outputs
