"""An answer with what stands behind it: its length, and how likely each option was in the very same forward pass.

The log-probability of an option is read where the answer first decides between options: at its first token, or, when
the answer opens with something that several options share ("(" of "(A)" and "(B)"), behind that. Greedy decoding has
computed those logits anyway, so that likelihoods cost no pass of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

DECIDING_STEPS = 4  # tokens of an answer within which it has to decide


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what was said.
        num_tokens: tokens written, the end of turn included.
        prompt_tokens: tokens read, those of pictures and world included, padding not.
        option_logprobs: log-probability of each option where the answer decides; None where no option was given, or
            where it does not decide between them within its first tokens.
    """

    text: str
    num_tokens: int
    prompt_tokens: int
    option_logprobs: tuple[float, ...] | None = None


class OptionKeeper(LogitsProcessor):
    """Keeps the log-probabilities that the first tokens of options had, and changes nothing.

    Args:
        spellings: for each row of the batch, for each option, the token ids of each way to write it.
    """

    def __init__(self, spellings: Sequence[Sequence[Sequence[Sequence[int]]]]) -> None:
        self.spellings = spellings
        self.kept: list[Tensor] = []  # one (B, number of ids) a step
        self.ids = sorted({token for row in spellings for option in row for ids in option for token in ids})
        self.column = {token: place for place, token in enumerate(self.ids)}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.ids and len(self.kept) < DECIDING_STEPS:
            columns = torch.tensor(self.ids, device=scores.device)
            self.kept.append(scores.float().log_softmax(-1)[:, columns].cpu())
        return scores

    def logprobs(self, row: int, written: Sequence[int]) -> tuple[float, ...] | None:
        """The options' log-probabilities of one row, which wrote the token ids `written`."""
        options = self.spellings[row]
        for step in range(min(len(self.kept), len(written))):
            begun = list(written[:step])
            following = [
                {ids[step] for ids in option if len(ids) > step and list(ids[:step]) == begun} for option in options
            ]
            shared = {token for own in following for token in own if sum(token in other for other in following) > 1}
            if written[step] in shared:
                continue  # not decided yet
            own = [tokens - shared for tokens in following]
            if not all(own):
                return None  # an option that cannot be told from another here has no likelihood of its own
            values = self.kept[step][row]
            return tuple(
                float(torch.logsumexp(values[[self.column[token] for token in sorted(tokens)]], 0)) for tokens in own
            )
        return None


def spellings_of(tokenizer: Any, options: Sequence[str]) -> list[list[list[int]]]:
    """Token ids of the ways to write each option: as it is, and a letter also in brackets."""
    found = []
    for option in options:
        forms = [option, f"({option})"] if len(option) == 1 else [option, option.capitalize()]
        ids = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in dict.fromkeys(forms)]
        found.append([own for own in ids if own])
    return found
