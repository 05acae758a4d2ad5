"""Chooses the gate of a model on a run, and shows what other thresholds would give."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from theworld.evaluation import scoring
from theworld.evaluation.probability_plots import gate_plot
from theworld.evaluation.run_folder import read_run
from theworld.evaluation.runner import Answer
from theworld.evaluation.statistics import percentile_interval, resampled_counts
from theworld.evaluation.tasks import Item
from theworld.model.gate import Gate
from theworld.model.spec import resolve_model
from theworld.storage.files import atomic_file, read_json_file, write_json, write_text
from theworld.storage.hub import CONFIG_FILE

BEFORE, AFTER, GATED = "fused-0", "fused", "gated"  # arms: without, with, and partly with imagined futures
CURVE_FILES = (".json", ".png", ".svg")
MAX_POINTS = 100  # of a curve in results
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
            "These answers were saved without their confidence, or without an imagined future; run the evaluation "
            "again with 1 world step or more."
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
            f"No threshold keeps {keep:.1%} of the accuracy with {max_rollouts:.1%} of the rollouts: the best one "
            f"keeps {best['accuracy'] / whole:.1%} with {best['rollouts']:.1%}. Allow more "
            "rollouts, or a lower accuracy."
        )
    return Gate(round(fitting[len(fitting) // 2]["min_confidence"], 5), max_jump)


def gate_summary(data: GateData, gate: Gate) -> dict[str, Any]:
    """What a gate gives on these questions; figures as in `share_of`."""
    imagined, right = data.outcome(gate)
    return {
        "n": len(right),
        "accuracy_with_future": float(data.after.mean()),
        "accuracy_without_future": float(data.before.mean()),
        **share_of(right, data.after, imagined, np.ones(len(right))),
    }


def share_of(right: np.ndarray, whole: np.ndarray, rollouts: np.ndarray, all_rollouts: np.ndarray) -> dict[str, Any]:
    """An arm's accuracy and rollouts (n,) relative to those of another arm on the same questions.

    Returns:
        "accuracy", "kept" (relative accuracy) and "rollouts" (relative), the last two with 95 % intervals from
        resampling questions.
    """
    counts = resampled_counts(len(right))
    found: dict[str, Any] = {"accuracy": float(right.mean())}
    for name, part, total in (("kept", right, whole), ("rollouts", rollouts, all_rollouts)):
        ratios = (counts @ part) / np.maximum(counts @ total, 1e-9)
        found[name] = float(part.sum() / max(total.sum(), 1e-9))
        found[f"{name}_interval_95"] = list(percentile_interval(ratios))
    return found


def gate_content(items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]]) -> dict[str, Any] | None:
    """What results say about gates: the curve of the thresholds, and what each gated arm keeps of its `fused`.

    Args:
        arms: name -> one list of answers per training seed, of which the first is used; names as in `compare`.

    Returns:
        {"curve", "arms"}; None without the arms `fused` and `fused-0` of one model, or if their answers were saved
        without confidences.
    """
    for name, (after, *_) in arms.items():
        prefix, _, base = name.rpartition("/")
        arm, _, steps = base.partition("@")
        before, *_ = arms.get("/".join(filter(None, (prefix, BEFORE))), [None])
        if arm != AFTER or before is None or any(one.confidence is None for one in before):
            continue
        if any(one.jump is None for one in after):  # a question without an image has no future
            continue
        data = gate_data(items, before, after)
        curve = gate_curve(data)
        chosen = {}
        for other, (answers, *_) in arms.items():
            if other == name.replace(base, "@".join(filter(None, (GATED, steps)))):
                right = np.array(scoring.right_answers(items, answers), dtype=float)
                costs = (np.array([one.rollouts for one in rows], dtype=float) for rows in (answers, after))
                chosen[other] = share_of(right, data.after, *costs)
        return {"curve": curve[:: -(-len(curve) // MAX_POINTS)] + curve[-1:], "arms": chosen}
    return None


def read_gate_data(run: str | os.PathLike[str]) -> GateData:
    """The data of a saved run of the arms `fused-0` and `fused`."""
    found = read_run(run)
    for arm in (BEFORE, AFTER):
        if arm not in found.answers:
            raise ValueError(f"{run} has no complete answers of the arm {arm}; evaluate {AFTER},{BEFORE} first.")
    return gate_data(found.items, found.answers[BEFORE], found.answers[AFTER])


def save_gate(model: str | os.PathLike[str], gate: Gate) -> None:
    """Writes the gate into `config.json` in the folder of a trained model.

    Raises:
        ValueError: if it is not such a folder.
    """
    folder = Path(model).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{model} is not a folder with a {CONFIG_FILE}; name the folder of a trained model.")
    resolve_model(folder).check_fused()
    path = folder / CONFIG_FILE
    values = {**read_json_file(path, "save the model again"), "gate": asdict(gate)}
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")  # as transformers writes it


def check_curve_file(path: str | os.PathLike[str]) -> None:
    """Raises a ValueError for a name that `write_curve` does not write."""
    if Path(path).suffix.lower() not in CURVE_FILES:
        raise ValueError(f"{os.fspath(path)!r}: the curve is written as {', '.join(CURVE_FILES)}.")


def write_curve(
    path: str | os.PathLike[str], curve: Sequence[Mapping[str, float]], chosen: Mapping[str, Any] | None = None
) -> None:
    """Writes a curve of `gate_curve` and the summary of the chosen gate as JSON, or draws them as PNG or SVG."""
    check_curve_file(path)
    if Path(path).suffix.lower() == ".json":
        write_json(path, {"curve": list(curve), "chosen": chosen})
        return
    with atomic_file(Path(path)) as unfinished:
        gate_plot(curve, chosen).savefig(unfinished, format=Path(path).suffix[1:].lower(), dpi=120)
