"""Log-probabilities of answer options, read from the forward passes that generate an answer.

The log-probability of an option is read at the position where the answer first decides between options: at its first
token, or, when the answer opens with something that several options share ("(" in "(A)" and "(B)"), after it. Greedy
decoding has computed those logits already, so likelihoods need no extra pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

DECIDING_STEPS = 4  # the number of first tokens within which an answer must decide


class OptionScores(LogitsProcessor):
    """Records the log-probabilities of the options' first tokens and leaves the scores unchanged.

    Args:
        spellings: for each row of the batch, for each option, the token ids of each way to write it.
    """

    def __init__(self, spellings: Sequence[Sequence[Sequence[Sequence[int]]]]) -> None:
        self.spellings = spellings
        self.recorded: list[Tensor] = []  # one (B, number of ids) per step
        self.ids = sorted({token for row in spellings for option in row for ids in option for token in ids})
        self.column = {token: index for index, token in enumerate(self.ids)}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.ids and len(self.recorded) < DECIDING_STEPS:
            columns = torch.tensor(self.ids, device=scores.device)
            self.recorded.append(scores.float().log_softmax(-1)[:, columns].cpu())
        return scores

    def logprobs(self, row: int, written: Sequence[int]) -> tuple[float, ...] | None:
        """The options' log-probabilities in one row, which generated the token ids `written`.

        Returns:
            One value per option, or None where the first tokens do not decide between the options.
        """
        options = self.spellings[row]
        for step in range(min(len(self.recorded), len(written))):
            prefix = list(written[:step])
            following = [
                {ids[step] for ids in option if len(ids) > step and list(ids[:step]) == prefix} for option in options
            ]
            shared = {
                token for tokens in following for token in tokens if sum(token in other for other in following) > 1
            }
            if written[step] in shared:
                continue  # not decided yet
            distinct = [tokens - shared for tokens in following]
            if not all(distinct):
                return None  # an option that has no token of its own here has no likelihood of its own
            values = self.recorded[step][row]
            return tuple(
                float(torch.logsumexp(values[[self.column[token] for token in sorted(tokens)]], 0))
                for tokens in distinct
            )
        return None


def spellings_of(tokenizer: Any, options: Sequence[str]) -> list[list[list[int]]]:
    """Token ids of the ways to write each option: as given and capitalised, or a letter with and without brackets."""
    spellings = []
    for option in options:
        forms = [option, f"({option})"] if len(option) == 1 else [option, option.capitalize()]
        ids = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in dict.fromkeys(forms)]
        spellings.append([tokens for tokens in ids if tokens])
    return spellings
