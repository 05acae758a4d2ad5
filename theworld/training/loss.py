"""The training loss and the metrics of an evaluation: cross-entropy over the tokens of the answers.

Shapes: B samples, L tokens, K positions whose next token is a label in at least one sample, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from theworld.inference.prompting import IGNORE_INDEX


def answer_loss(
    outputs: Any, targets: Tensor, num_items_in_batch: Tensor | int, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, summed over the labels and divided by `num_items_in_batch`.

    Args:
        outputs: with logits (B, K, V).
        targets: (B, K), the token that follows each position; -100 where it is not a label.
        label_smoothing: in [0, 1).
    """
    logits = outputs.logits.flatten(0, 1)  # (B·K, V)
    labelled = targets.flatten() != IGNORE_INDEX
    losses = nn.functional.cross_entropy(
        logits[labelled].float(), targets.flatten()[labelled], reduction="sum", label_smoothing=label_smoothing
    )
    return losses / num_items_in_batch


def answer_sums(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Sums over each sample: (B, 4) of loss, answer tokens, answers that greedy decoding gets exactly right, answers.

    As long as every token so far is the greedy one, teacher forcing and greedy decoding read the same prefix. One
    forward pass therefore shows whether greedy decoding would give the whole answer.

    Args:
        logits: (B, K, V).
        targets: (B, K).
        labels: (B, L), which show where one answer ends and the next one begins.
    """
    all_labelled = labels[:, 1:] != IGNORE_INDEX  # (B, L-1)
    assert targets.shape[1] == int(all_labelled.any(dim=0).sum()), "the K positions are the labelled ones"
    B = targets.shape[0]
    labelled = targets != IGNORE_INDEX
    losses = torch.zeros(targets.shape, device=logits.device)
    losses[labelled] = nn.functional.cross_entropy(logits[labelled].float(), targets[labelled], reduction="none")
    starts = all_labelled & ~nn.functional.pad(all_labelled, (1, 0))[:, :-1]
    answer = starts.cumsum(dim=1)[:, all_labelled.any(dim=0)]  # (B, K): which answer of its sample a token belongs to
    wrong = labelled & (logits.argmax(dim=-1) != targets)
    counts = starts.sum(dim=1)
    errors = torch.zeros((B, int(counts.max()) + 1), device=logits.device)
    errors.scatter_add_(1, answer, wrong.float())
    right = counts - (errors[:, 1:] > 0).sum(dim=1)
    return torch.stack([losses.sum(dim=1), labelled.sum(dim=1), right, counts], dim=1).float()


def evaluation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss per answer token, and the share of right answers, over all evaluation samples."""
    loss, tokens, right, answers = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    return {"loss": loss / tokens, "exact_match": right / answers, "answers": int(answers)}
