"""Chooses the gate of a model on a run, and shows what other thresholds would give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.evaluation import scoring
from theworld.evaluation.run_folder import read_run
from theworld.evaluation.runner import Answer
from theworld.evaluation.statistics import bootstrap_mean
from theworld.evaluation.tasks import Item
from theworld.model.gate import Gate

BEFORE, AFTER = "fused-0", "fused"  # arms: the answers without and with an imagined future
KEPT_FUTURES = 0.99  # share of a model's own futures that its limit of jumps accepts


@dataclass(frozen=True)
class GateData:
    """The answers to n questions without and with a future.

    Attributes:
        confidence: (n,) of the answers without a future; NaN where it is unknown.
        before, after: (n,) 1 where the answer without, or with, a future is correct, otherwise 0.
        jumps: (n,) of the futures.
    """

    confidence: np.ndarray
    before: np.ndarray
    after: np.ndarray
    jumps: np.ndarray

    def outcome(self, gate: Gate) -> tuple[np.ndarray, np.ndarray]:
        """Which questions are imagined (n,), and which are answered correctly (n,), both 0 or 1."""
        imagined = ~(self.confidence >= gate.min_confidence)
        used = imagined & (True if gate.max_jump is None else self.jumps <= gate.max_jump)
        return imagined.astype(float), np.where(used, self.after, self.before)


def gate_data(items: Sequence[Item], before: Sequence[Answer], after: Sequence[Answer]) -> GateData:
    """The data of two arms, in the order of the items.

    Raises:
        ValueError: if the answers have no confidences or jumps, as those of earlier versions.
    """
    if any(answer.confidence is None for answer in before) or any(answer.jump is None for answer in after):
        raise ValueError(
            "These answers were saved without their confidence, or without an imagined future; run the evaluation again "
            "with 1 world step or more."
        )
    return GateData(
        np.array([answer.confidence for answer in before], dtype=float),
        np.array(scoring.right_answers(items, before), dtype=float),
        np.array(scoring.right_answers(items, after), dtype=float),
        np.array([answer.jump for answer in after], dtype=float),
    )


def gate_curve(data: GateData, max_jump: float | None = None) -> list[dict[str, float]]:
    """What each threshold gives: {"min_confidence", "rollouts" (share of questions that are imagined), "accuracy"}."""
    levels = np.unique(data.confidence)
    between = (levels[:-1] + levels[1:]) / 2
    points = []
    for threshold in (0.0, *between.tolist(), 1.0):
        imagined, right = data.outcome(Gate(threshold, max_jump))
        points.append({"min_confidence": threshold, "rollouts": imagined.mean(), "accuracy": right.mean()})
    return [{name: float(value) for name, value in point.items()} for point in points]


def choose_gate(data: GateData, keep: float = 0.99, max_rollouts: float = 0.5) -> Gate:
    """The gate that keeps a share of the accuracy with a future for a share of the rollouts.

    It is the middle one of the thresholds that meet both conditions, so that on other questions neither fails narrowly.
    `max_jump` accepts 99 % of the model's own futures.

    Args:
        keep: smallest accuracy, relative to that with a future for each question.
        max_rollouts: largest share of the questions that are imagined.

    Raises:
        ValueError: if no threshold meets both conditions.
    """
    max_jump = round(float(np.ceil(1000 * np.quantile(data.jumps, KEPT_FUTURES)) / 1000), 3)
    curve, whole = gate_curve(data, max_jump), data.after.mean()
    fitting = [point for point in curve if point["rollouts"] <= max_rollouts and point["accuracy"] >= keep * whole]
    if not fitting:
        best = max((point for point in curve if point["rollouts"] <= max_rollouts), key=lambda point: point["accuracy"])
        raise ValueError(
            f"No threshold keeps {keep:.1%} of the accuracy with {max_rollouts:.1%} of the rollouts: the best one keeps "
            f"{best['accuracy'] / whole:.1%} with {best['rollouts']:.1%}. Allow more rollouts, or a lower accuracy."
        )
    return Gate(round(fitting[len(fitting) // 2]["min_confidence"], 5), max_jump)


def gate_summary(data: GateData, gate: Gate) -> dict[str, Any]:
    """What a gate gives on these questions, relative to a future for each of them, with 95 % intervals."""
    imagined, right = data.outcome(gate)
    return {
        "n": len(right),
        "accuracy": float(right.mean()),
        "accuracy_with_future": float(data.after.mean()),
        "accuracy_without_future": float(data.before.mean()),
        **kept(right, data.after),
        "rollouts": float(imagined.mean()),
        "rollouts_interval_95": list(bootstrap_mean([imagined])),
    }


def kept(right: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """The accuracy of `right` (n,) relative to that of `whole` (n,), with an interval from resampling questions."""
    from theworld.evaluation.calibration import interval, resampled_counts

    counts = resampled_counts(len(right))
    ratio = (counts @ right) / np.maximum(counts @ whole, 1e-9)
    return {"kept": float(right.mean() / whole.mean()), "kept_interval_95": list(interval(ratio))}


def read_gate_data(run: str | os.PathLike[str]) -> GateData:
    """The data of a saved run of the arms `fused-0` and `fused`."""
    found = read_run(run)
    for arm in (BEFORE, AFTER):
        if arm not in found.answers:
            raise ValueError(f"{run} has no complete answers of the arm {arm}; evaluate {AFTER},{BEFORE} first.")
    return gate_data(found.items, found.answers[BEFORE], found.answers[AFTER])
