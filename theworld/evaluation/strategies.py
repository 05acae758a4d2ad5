"""Arms that ask a model more than once: several futures, and a future only where the first answer is not sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from theworld.inference.futures import combine
from theworld.inference.scored_answers import Reply

if TYPE_CHECKING:
    from theworld.evaluation.arms import Batch
    from theworld.evaluation.runner import Answer

Change: TypeAlias = "Callable[[Batch], Batch]"
Ask: TypeAlias = "Callable[[Batch], list[Answer]]"  # asks the model once; answers without their cost
Strategy: TypeAlias = "Callable[[Change, Batch, Ask], list[Answer]]"


def once(change: Change, batch: Batch, ask: Ask) -> list[Answer]:
    """Asks each question once."""
    return ask(change(batch))


def over_futures(count: int) -> Strategy:
    """Asks each question once per future, with the seeds from the batch's own on, and combines the answers."""

    def strategy(change: Change, batch: Batch, ask: Ask) -> list[Answer]:
        futures = [ask(change(replace(batch, seed=batch.seed + number))) for number in range(count)]
        return [
            of_futures(answers, item.options)
            for answers, item in zip(zip(*futures, strict=True), batch.items, strict=True)
        ]

    return strategy


def of_futures(answers: Sequence[Answer], options: Sequence[str]) -> Answer:
    """One answer out of those from several futures; its tokens are those of all."""
    found = combine([Reply(one.text, one.new_tokens, one.prompt_tokens, one.logprobs) for one in answers], options)
    chosen = found.probabilities
    labels = [one.label_logprob for one in answers if one.label_logprob is not None]
    return replace(
        answers[0],
        text=found.answer,
        logprobs=tuple(np.log(np.clip(list(chosen.values()), 1e-300, None)).tolist()) if chosen else None,
        prompt_tokens=sum(one.prompt_tokens for one in answers),
        new_tokens=sum(one.new_tokens for one in answers),
        label_logprob=float(np.logaddexp.reduce(labels) - np.log(len(labels))) if labels else None,
        confidence=None,
        jump=None,
        agreement=found.agreement,
        spread=found.spread.get(found.answer),
    )


def gated(change: Change, batch: Batch, ask: Ask) -> list[Answer]:
    """Asks without a future, and with one where that answer is not sure; keeps the future if it fits the present."""
    gate = batch.imagination.gate
    answers = ask(change(replace(batch, num_world_steps=0)))
    unsure = [row for row, answer in enumerate(answers) if not gate.is_sure(answer.confidence)]
    if not unsure:
        return answers
    for row, second in zip(unsure, ask(change(batch.rows(unsure))), strict=True):
        first, cost = answers[row], len(batch.world_images[row])
        answers[row] = replace(
            second if gate.keeps(second.jump) else first,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            new_tokens=first.new_tokens + second.new_tokens,
            rollouts=cost,
        )
    return answers
