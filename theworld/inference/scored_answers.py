"""Answers with what the same forward passes say about them: likelihoods of the options, and the model's confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature, LogitsProcessor

from theworld.inference.option_scores import OptionScores, spellings_of
from theworld.inference.options import decoding_arguments

if TYPE_CHECKING:
    from theworld.inference.pipeline import TheWorld


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: without special tokens.
        num_tokens: generated tokens, the end of the turn included.
        prompt_tokens: those of images and of the world included, padding excluded.
        option_logprobs: one per option; None without options, and where the first tokens do not decide between them.
        confidence: in [0, 1], the probability of the best token where it was lowest; None if it is unknown. It needs no
            options, and does not shrink with the length of the answer.
    """

    text: str
    num_tokens: int
    prompt_tokens: int
    option_logprobs: tuple[float, ...] | None = None
    confidence: float | None = None


class BestTokens(LogitsProcessor):
    """Records the log-probability of the most probable token of each row and step; leaves the scores unchanged."""

    def __init__(self) -> None:
        self.recorded: list[Tensor] = []  # (B,) per step, on the device, so that no step waits for the host

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.recorded.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def confidences(self, lengths: Sequence[int]) -> list[float | None]:
        """The lowest probability within the first `lengths` tokens of each row."""
        if not self.recorded:
            return [None] * len(lengths)
        best = torch.stack(self.recorded, dim=1).exp().cpu()  # (B, steps)
        return [float(row[:length].min()) if length else None for row, length in zip(best, lengths, strict=True)]


@torch.no_grad()
def generate_scored(
    model: TheWorld,
    inputs: BatchFeature,
    options: Sequence[Sequence[str]] | None = None,
    max_new_tokens: int = 128,
    temperature: float | None = 0.0,
    **decoding: Any,
) -> list[Reply]:
    """Generates the answers to a batch of prompts.

    Args:
        inputs: those of `TheWorld.prepare_generation`, (B, L).
        options: for each row, the answers whose log-probabilities are wanted.
        max_new_tokens, temperature: as in `TheWorld.generate`.
        decoding: further arguments of transformers' `generate`.
    """
    rows, length = inputs["input_ids"].shape
    tokenizer = model.processor.tokenizer
    scores = OptionScores([spellings_of(tokenizer, row) for row in options or [[]] * rows])
    best, given = BestTokens(), dict(decoding)
    given["logits_processor"] = [*(given.get("logits_processor") or ()), scores, best]
    ids = model.model.generate(**inputs, **decoding_arguments(max_new_tokens, temperature, given, tokenizer))
    written = ids[:, length:].tolist()
    texts = model.processor.batch_decode(written, skip_special_tokens=True)
    lengths = [sum(token != tokenizer.pad_token_id for token in tokens) for tokens in written]
    prompts = inputs["attention_mask"].sum(dim=1).tolist()
    return [
        Reply(
            text.strip(),
            lengths[row],
            prompts[row],
            scores.logprobs(row, written[row]) if options is not None and options[row] else None,
            confidence,
        )
        for row, (text, confidence) in enumerate(zip(texts, best.confidences(lengths), strict=True))
    ]
