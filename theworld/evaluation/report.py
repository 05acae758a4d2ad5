"""The result of an evaluation as one JSON file and its predictions as JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from theworld.evaluation import scoring, statistics
from theworld.evaluation.items import HIDDEN, Item
from theworld.evaluation.runner import Answer

REFERENCE = "fused"
POINTS = (0.01, 0.02, 0.03, 0.05, 0.1)  # differences whose number of questions is told


def results(
    items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], reference: str = ""
) -> dict[str, Any]:
    """Scores of every arm, paired differences of the reference arm to the others, and what looks suspicious.

    Args:
        items: what was asked.
        arms: name -> answers in the order of the items, a list a training seed (one, where there is one model).
        reference: the arm that others are compared with; empty takes `fused`, or the first.

    Where the truth is not published there are no scores and no comparisons, only what was unreadable.
    """
    if any(item.answer == HIDDEN for item in items):
        if not all(item.answer == HIDDEN for item in items):
            raise ValueError("some questions have an answer and some have none; evaluate them apart.")
        return {"hidden": True, "arms": {name: unscored(items, seeds) for name, seeds in arms.items()}, "warnings": []}
    reference = reference or reference_of(list(arms))
    pairs = {
        f"{reference}-minus-{name}": paired(items, arms[reference], arms[name]) for name in arms if name != reference
    }
    commonest = [Answer(item.id, text) for item, text in zip(items, scoring.commonest_answers(items), strict=True)]
    return {
        "reference": reference,
        "arms": {name: scoring.score(items, seeds) for name, seeds in arms.items()},
        "paired": with_family_findings(statistics.with_findings(pairs)),
        "commonest_answer": scoring.score(items, [commonest]),
        "confusion": {name: scoring.confusion(items, seeds) for name, seeds in arms.items()},
        "warnings": suspicions(items, arms),
    }


def reference_of(names: Sequence[str]) -> str:
    """The arm that others are compared with: fused, with the most world steps where there are several; or the first."""
    own = [name for name in names if name.partition("@")[0].rpartition("/")[2] == REFERENCE]
    return own[-1] if own else names[0]


def unscored(items: Sequence[Item], seeds: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """What can be said of answers whose truth is hidden."""
    answers = [answer for own in seeds for answer in own]
    unparsed = sum(not scoring.is_parsed(item, one.text) for own in seeds for item, one in zip(items, own, strict=True))
    return {"n": len(items), "unparsed": unparsed, "cost": scoring.cost(answers)}


def paired(
    items: Sequence[Item], first: Sequence[Sequence[Answer]], second: Sequence[Sequence[Answer]]
) -> dict[str, Any]:
    """`statistics.compare_seeds` in all, by family and of the means over families, and what showing it would take."""
    rows = [[scoring.right_answers(items, answers) for answers in seeds] for seeds in (first, second)]
    families = scoring.groups_of(items, lambda item: item.family)
    by_family = {
        family: statistics.compare_seeds(*([[row[place] for place in places] for row in side] for side in rows))
        for family, places in families.items()
    }
    shares = [np.asarray(side, dtype=float).mean(axis=0) for side in rows]
    groups = [(shares[0] - shares[1])[places] for places in families.values()]
    found = statistics.compare_seeds(*rows)
    disagreement = (found["only_first"] + found["only_second"]) / found["n"]
    return {
        **found,
        "by_family": by_family,
        "mean_of_families": {
            "difference": float(np.mean([group.mean() for group in groups])),
            "interval_95": list(statistics.bootstrap_mean(groups)),
        },
        "disagreement": disagreement,
        # arms that never disagree leave the share unknown; they differ by d at least on d of the questions
        "questions_for_points": {f"{100 * d:g}": statistics.questions_needed(d, max(disagreement, d)) for d in POINTS},
    }


def with_family_findings(pairs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons with findings inside each family too, corrected over all families of all comparisons."""
    rows = {(name, family): row for name, pair in pairs.items() for family, row in pair["by_family"].items()}
    found = statistics.with_findings({f"{name}\n{family}": row for (name, family), row in rows.items()})
    return {
        name: {**pair, "by_family": {family: found[f"{name}\n{family}"] for family in pair["by_family"]}}
        for name, pair in pairs.items()
    }


def suspicions(items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], enough: int = 20) -> list[str]:
    """Signs that an evaluation measured nothing: arms that answer alike, or answers that nobody could read."""
    found = []
    texts = {name: [[answer.text for answer in own] for own in seeds] for name, seeds in arms.items()}
    for first, second in combinations(texts, 2):
        if len(items) >= enough and texts[first] == texts[second]:
            found.append(f"{first} and {second} gave the same answer to all {len(items)} questions.")
    for name, seeds in texts.items():
        unread = sum(not scoring.is_parsed(item, text) for own in seeds for item, text in zip(items, own, strict=True))
        asked = len(items) * len(seeds)
        if unread > asked // 20:
            found.append(f"{unread} of {asked} answers of {name} are no answer to their question.")
    return found


def prediction_lines(items: Sequence[Item], arms: Mapping[str, Sequence[Answer]]) -> str:
    """One JSON object a question: what was asked, the answer, and what each arm said."""
    lines = []
    for row, item in enumerate(items):
        content = {
            "id": item.id,
            "family": item.family,
            "topic": item.topic,
            "form": item.form,
            "question": item.question,
            "answer": item.answer,
            "predictions": {name: answers[row].text for name, answers in arms.items()},
            "read": {name: scoring.read_answer(item, answers[row].text) for name, answers in arms.items()},
            "likeliest": {name: scoring.likeliest(item, answers[row].logprobs) for name, answers in arms.items()},
        }
        lines.append(json.dumps(content, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def predictions_path(path: str | os.PathLike[str]) -> Path:
    """`results.json` -> `results.predictions.jsonl` beside it."""
    return Path(path).with_suffix(".predictions.jsonl")
