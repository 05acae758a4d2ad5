"""Parses and scores answers: free text, and separately the most likely option. Unparsed answers count as wrong.

Items with choices are parsed by `read_choice`, all others by exact match after normalisation. Of the labels of training
samples the likelihood is measured instead of that of options.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from theworld.evaluation.answer_parser import LETTERS, read_choice
from theworld.evaluation.runner import Answer
from theworld.evaluation.statistics import bootstrap_mean, wilson_interval
from theworld.evaluation.tasks import HIDDEN, LABEL, Item
from theworld.inference.futures import normalise

MOST_COMMON = "(most common answer)"  # row of a table of arms
UNREAD = "unread"  # column of a confusion matrix
OTHER = "(no label)"  # the same, for words that are no question's label


def read_answer(item: Item, text: str) -> str | None:
    """The answer that a text gives: a letter if the item has choices, else one of its legal answers; or None."""
    if item.choices:
        return read_choice(text, item.choices)
    given = normalise(text)
    if item.form == LABEL:  # any words are an answer
        return item.answer if given == normalise(item.answer) else text.strip() or None
    return next((answer for answer in sorted(item.legal | {item.answer}) if normalise(answer) == given), None)


def is_right(item: Item, prediction: str) -> bool:
    return item.answer != HIDDEN and read_answer(item, prediction) == item.answer


def count_unparsed(items: Sequence[Item], seeds: Sequence[Sequence[Answer]]) -> int:
    """How many answers could not be parsed, over all training seeds."""
    return sum(
        read_answer(item, answer.text) is None for answers in seeds for item, answer in zip(items, answers, strict=True)
    )


def likeliest(item: Item, logprobs: Sequence[float] | None) -> str | None:
    """The answer with the most likely option, in the form of `Item.answer`; None if there are no log-probabilities."""
    if logprobs is None:
        return None
    best = max(range(len(logprobs)), key=logprobs.__getitem__)
    return LETTERS[best] if item.choices else item.options[best]


def right_answers(items: Sequence[Item], answers: Sequence[Answer], by: str = "text") -> list[bool]:
    """Which answers are correct, by free `text` or by the most likely option (`likelihood`)."""
    pairs = zip(items, answers, strict=True)
    if by == "text":
        return [is_right(item, answer.text) for item, answer in pairs]
    return [item.answer != HIDDEN and likeliest(item, answer.logprobs) == item.answer for item, answer in pairs]


def score(items: Sequence[Item], seeds: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, in total, by family and by horizon, and the number of unparsed answers.

    `mean_of_families` weights families equally, as BLINK's headline does; `likelihood` is the accuracy of the most
    likely option, with the number of answers that do not decide between options (they count as wrong).

    Args:
        seeds: one list of answers per training seed; a question counts with its share of correct seeds.
    """
    rows = [right_answers(items, answers) for answers in seeds]
    found = {
        **share(rows),
        "by_family": shares_by(items, rows, lambda item: item.family),
        "mean_of_families": mean_of_families(items, np.asarray(rows, dtype=float).mean(axis=0)),
        "unparsed": count_unparsed(items, seeds),
        "cost": cost(seeds),
    }
    if all(item.form == LABEL for item in items):
        found["label"] = label_likelihood(seeds)
    else:
        found["likelihood"] = {
            **share([right_answers(items, row, "likelihood") for row in seeds]),
            "undecided": sum(answer.logprobs is None for row in seeds for answer in row),
        }
    if all(item.horizon is not None for item in items):
        found["by_horizon"] = shares_by(items, rows, lambda item: str(item.horizon))
    return found


def share(rows: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """{"accuracy", "n", "interval_95"} of correct answers, one row per training seed; with several also each seed's."""
    n = len(rows[0])
    if len(rows) == 1:
        right = sum(rows[0])
        return {"accuracy": right / n, "n": n, "interval_95": list(wilson_interval(right, n))}
    shares = np.asarray(rows, dtype=float).mean(axis=0)  # (n,)
    return {
        "accuracy": float(shares.mean()),
        "n": n,
        "interval_95": list(bootstrap_mean([shares])),
        "seed_accuracies": [sum(row) / n for row in rows],
    }


def label_likelihood(seeds: Sequence[Sequence[Answer]]) -> dict[str, float] | None:
    """Mean log-probability per token of the labels, over all of their tokens as in training, and its perplexity."""
    answers = [answer for row in seeds for answer in row]
    if any(answer.label_logprob is None for answer in answers):
        return None
    mean = sum(answer.label_logprob or 0.0 for answer in answers) / sum(answer.label_tokens for answer in answers)
    return {"mean_logprob": mean, "perplexity": math.exp(min(-mean, 700.0))}


def label_rates(seeds: Sequence[Sequence[Answer]]) -> Any:
    """The mean log-probability per token of each question's label (n,), over training seeds; None without labels."""
    if any(answer.label_logprob is None for row in seeds for answer in row):
        return None
    return np.mean([[(a.label_logprob or 0.0) / a.label_tokens for a in row] for row in seeds], axis=0)


def groups_of(items: Sequence[Item], key: Callable[[Item], str]) -> dict[str, list[int]]:
    """The rows of the items in each group, groups sorted by name."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        rows[key(item)].append(row)
    return dict(sorted(rows.items()))


def shares_by(items: Sequence[Item], rows: Sequence[Sequence[bool]], key: Callable[[Item], str]) -> dict[str, Any]:
    return {name: share([[row[i] for i in members] for row in rows]) for name, members in groups_of(items, key).items()}


def mean_of_families(items: Sequence[Item], values: Any, name: str = "accuracy") -> dict[str, Any]:
    """{`name`, "interval_95"} of the unweighted mean over families of `values` (n,), resampled within each."""
    groups = [values[members] for members in groups_of(items, lambda item: item.family).values()]
    return {name: float(np.mean([group.mean() for group in groups])), "interval_95": list(bootstrap_mean(groups))}


def cost(seeds: Sequence[Sequence[Answer]]) -> dict[str, float | None]:
    """Means per answer: seconds without rollouts, seconds of rollouts, rollouts, passes, prompt and generated tokens.

    A figure that runs of earlier versions do not have is None.
    """
    answers = [answer for row in seeds for answer in row]
    digits = {"seconds": 4, "rollout_seconds": 4, "rollouts": 3, "passes": 2, "prompt_tokens": 1, "new_tokens": 2}
    columns = {name: [getattr(one, name) for one in answers] for name in digits}
    return {
        name: None if None in values else round(sum(values) / len(values), digits[name])
        for name, values in columns.items()
    }


def confusion(items: Sequence[Item], seeds: Sequence[Sequence[Answer]]) -> dict[str, dict[str, int]]:
    """How often each true answer was parsed as which answer; `UNREAD` if it could not be parsed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    labels = {item.answer for item in items}
    for answers in seeds:
        for item, answer in zip(items, answers, strict=True):
            read = read_answer(item, answer.text) or UNREAD
            counts[item.answer][OTHER if item.form == LABEL and read not in {*labels, UNREAD} else read] += 1
    return {truth: dict(sorted(read.items())) for truth, read in sorted(counts.items())}


def commonest_answers(items: Sequence[Item]) -> list[str]:
    """For each item, the most common true answer of its (family, topic, form): the baseline without any image."""
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[item.family, item.topic, item.form][item.answer] += 1
    return [counts[item.family, item.topic, item.form].most_common(1)[0][0] for item in items]
