"""Reads short answers and scores them: exact match after normalisation, unparsed counts as wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from theworld.evaluation.choices import read_choice
from theworld.evaluation.items import Item
from theworld.evaluation.statistics import wilson_interval

__all__ = ["commonest_answers", "is_parsed", "is_right", "normalise", "read_choice", "score", "share"]


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop at the end, no brackets around the whole: "(B)." -> "b"."""
    text = " ".join(text.lower().split()).rstrip(".").strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    return text


def is_right(item: Item, prediction: str) -> bool:
    return normalise(prediction) == normalise(item.answer)


def is_parsed(item: Item, prediction: str) -> bool:
    """Whether the prediction is an answer at all, right or wrong."""
    return normalise(prediction) in {normalise(answer) for answer in item.legal | {item.answer}}


def score(items: Sequence[Item], predictions: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, in all and by family, and how many predictions were no answer."""
    right = [is_right(item, text) for item, text in zip(items, predictions, strict=True)]
    unparsed = sum(not is_parsed(item, text) for item, text in zip(items, predictions, strict=True))
    by_family: dict[str, list[bool]] = defaultdict(list)
    for item, ok in zip(items, right, strict=True):
        by_family[item.family].append(ok)
    families = {family: share(results) for family, results in sorted(by_family.items())}
    return {**share(right), "by_family": families, "unparsed": unparsed}


def share(right: Sequence[bool]) -> dict[str, Any]:
    """{"accuracy", "n", "interval_95"} of a list of right and wrong."""
    low, high = wilson_interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "n": len(right), "interval_95": [low, high]}


def commonest_answers(items: Sequence[Item]) -> list[str]:
    """What someone would say who knows only how often each answer occurs per (family, topic, form)."""
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[item.family, item.topic, item.form][item.answer] += 1
    return [counts[item.family, item.topic, item.form].most_common(1)[0][0] for item in items]
