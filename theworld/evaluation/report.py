"""The result of an evaluation as one JSON file and its predictions as JSON Lines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

from theworld.evaluation import scoring, statistics
from theworld.evaluation.items import Item

PACKAGES = ("theworld", "torch", "transformers", "diffusers", "peft", "numpy")
PROVENANCE = "provenance.json"  # beside a model's weights: how they were made, and from how many scenes
LABEL_COUNTS = ("labelled_scenes_per_family", "unlabelled_clips", "clips_asked_about_now_per_family")
REFERENCE = "fused"


def results(items: Sequence[Item], predictions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Scores of every arm, paired differences of the reference arm to the others, and what looks suspicious."""
    right = {
        name: [scoring.is_right(item, text) for item, text in zip(items, texts, strict=True)]
        for name, texts in predictions.items()
    }
    reference = REFERENCE if REFERENCE in right else next(iter(right))
    return {
        "arms": {name: scoring.score(items, texts) for name, texts in predictions.items()},
        "paired": {
            f"{reference}-minus-{name}": paired(items, right[reference], right[name])
            for name in right
            if name != reference
        },
        "commonest_answer": scoring.score(items, scoring.commonest_answers(items)),
        "warnings": suspicions(items, predictions),
    }


def paired(items: Sequence[Item], first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """`statistics.compare` over all questions and by family."""
    by_family = {}
    for family in sorted({item.family for item in items}):
        rows = [i for i, item in enumerate(items) if item.family == family]
        by_family[family] = statistics.compare([first[i] for i in rows], [second[i] for i in rows])
    return {**statistics.compare(first, second), "by_family": by_family}


def suspicions(items: Sequence[Item], predictions: Mapping[str, Sequence[str]], enough: int = 20) -> list[str]:
    """Signs that an evaluation measured nothing: arms that answer alike, or answers that nobody could read."""
    found = []
    for first, second in combinations(predictions, 2):
        if len(items) >= enough and list(predictions[first]) == list(predictions[second]):
            found.append(f"{first} and {second} gave the same answer to all {len(items)} questions.")
    for name, texts in predictions.items():
        unread = sum(not scoring.is_parsed(item, text) for item, text in zip(items, texts, strict=True))
        if unread > len(items) // 20:
            found.append(f"{unread} of {len(items)} answers of {name} are no answer to their question.")
    return found


def versions() -> dict[str, str]:
    """Python and the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            continue
    return found


def provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `provenance.json` beside a model's weights, or beside its folder, says; empty where there is none."""
    for path in (Path(folder) / PROVENANCE, Path(folder).parent / PROVENANCE):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def labels(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """How many labelled and unlabelled scenes a model saw, as its provenance says; empty where that is not known."""
    content = provenance(folder)
    return {name: content[name] for name in LABEL_COUNTS if name in content}


def prediction_lines(items: Sequence[Item], predictions: Mapping[str, Sequence[str]]) -> str:
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
            "predictions": {name: texts[row] for name, texts in predictions.items()},
        }
        lines.append(json.dumps(content, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def predictions_path(path: str | os.PathLike[str]) -> Path:
    """`results.json` -> `results.predictions.jsonl` beside it."""
    return Path(path).with_suffix(".predictions.jsonl")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole file or none, making its folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    side = target.with_name(f".{target.name}.{os.getpid()}.writing")
    try:
        side.write_text(text, encoding="utf-8")
        side.replace(target)
    finally:
        side.unlink(missing_ok=True)
