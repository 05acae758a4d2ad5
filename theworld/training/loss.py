"""The training loss and the metrics of an evaluation: cross-entropy over the tokens of the answers.

Shapes: B samples, L tokens, M labels, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from theworld.model.packing import shift
from theworld.model.placeholders import IGNORE_INDEX


def answer_loss(
    logits: Tensor, targets: Tensor, num_items_in_batch: Tensor | int, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, summed over the labels and divided by `num_items_in_batch`.

    Args:
        logits: (M, V), in the order of the labels.
        targets: (M,) the labels.
        label_smoothing: in [0, 1).
    """
    losses = nn.functional.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
    return losses / num_items_in_batch


def answer_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over each sample: (B, 4) of loss, answer tokens, answers that greedy decoding gets exactly right, answers.

    As long as every token so far is the greedy one, teacher forcing and greedy decoding read the same prefix. One
    forward pass therefore shows whether greedy decoding would give the whole answer.

    Args:
        logits: (M, V) before each label, row by row.
        labels: (B, L), which show where one answer ends and the next one begins.
    """
    targets = shift(labels)
    labelled = targets != IGNORE_INDEX  # (B, L), M of them
    losses = torch.zeros(targets.shape, device=logits.device)
    losses[labelled] = nn.functional.cross_entropy(logits.float(), targets[labelled], reduction="none")
    wrong = torch.zeros(targets.shape, device=logits.device)
    wrong[labelled] = (logits.argmax(dim=-1) != targets[labelled]).float()
    starts = labelled & ~nn.functional.pad(labelled, (1, 0))[:, :-1]
    answer = starts.cumsum(dim=1)  # (B, L): which answer of its sample a token belongs to
    counts = starts.sum(dim=1)
    errors = torch.zeros((len(labels), int(counts.max()) + 1), device=logits.device)
    errors.scatter_add_(1, answer, wrong)
    right = counts - (errors[:, 1:] > 0).sum(dim=1)
    return torch.stack([losses.sum(dim=1), labelled.sum(dim=1), right, counts], dim=1).float()


def evaluation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss per answer token, and the share of right answers, over all evaluation samples."""
    loss, tokens, right, answers = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    return {"loss": loss / tokens, "exact_match": right / answers, "answers": int(answers)}
