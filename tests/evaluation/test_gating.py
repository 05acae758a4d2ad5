"""The gate: chosen so that both of its conditions are met, saved with the model, and the same in an arm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from theworld.evaluation import gating
from theworld.evaluation.gating import GateData, choose_gate, gate_content, gate_curve, gate_summary
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import Item
from theworld.inference.pipeline import TheWorld
from theworld.model.gate import Gate
from theworld.model.spec import resolve_model

N = 200


@pytest.fixture
def data() -> GateData:
    """The 60 least confident answers are wrong and correct with a future; the others are correct in both."""
    confidence = np.linspace(0.2, 0.9, N)
    return GateData(confidence, (np.arange(N) >= 60).astype(float), np.ones(N), np.linspace(0.5, 1.5, N))


def test_the_curve_ends_at_a_future_for_each_question(data: GateData) -> None:
    curve = gate_curve(data)
    assert (curve[0]["rollouts"], curve[0]["accuracy"]) == (0, 140 / N)
    assert (curve[-1]["rollouts"], curve[-1]["accuracy"]) == (1, 1)
    at = {round(N * point["rollouts"]): point["accuracy"] for point in curve}
    assert at[30] == pytest.approx(170 / N)
    assert at[60] == 1


def test_the_gate_is_in_the_middle_of_what_meets_both_conditions(data: GateData) -> None:
    gate = choose_gate(data, keep=0.99, max_rollouts=0.5)
    imagined, right = data.outcome(gate)
    assert 58 / N <= imagined.mean() <= 0.5
    assert 75 <= imagined.sum() <= 85, "between 58 and 100"
    assert right.mean() >= 0.99
    assert gate.max_jump == pytest.approx(np.quantile(data.jumps, 0.99), abs=1e-3)
    summary = gate_summary(data, gate)
    assert (summary["kept"], summary["rollouts"]) == (right.mean(), imagined.mean())
    assert summary["rollouts_interval_95"][0] < summary["rollouts"] < summary["rollouts_interval_95"][1]


def test_conditions_that_exclude_each_other_are_an_error_with_the_best_that_is_possible(data: GateData) -> None:
    with pytest.raises(
        ValueError, match=r"No threshold keeps 99.0% .* with 20.0% of the rollouts: the best one keeps 9"
    ):
        choose_gate(data, keep=0.99, max_rollouts=0.2)


def test_a_future_that_jumps_is_not_used(data: GateData) -> None:
    imagined, right = data.outcome(Gate(1.0, max_jump=0.75))  # the first 50 futures
    assert imagined.all()
    assert right[:50].all()
    assert not right[50:60].any(), "these are correct only with a future"


def answered(texts: list[str], confidence: float | None = None, jump: float | None = None) -> list[Answer]:
    return [
        Answer(str(row), text, confidence=confidence, jump=jump, rollouts=float(jump is not None))
        for row, text in enumerate(texts)
    ]


def test_results_say_what_gated_arms_keep() -> None:
    items = [Item(str(row), "", "", "free", None, "?", "left", frozenset({"left", "right"})) for row in range(4)]
    before, after = answered(["left", "right"] * 2, 0.5), answered(["left"] * 4, jump=0.5)
    arms = {"fused-0": [before], "fused": [after], "gated": [[*after[:2], *before[2:]]]}
    content = gate_content(items, arms)
    assert content is not None
    assert (content["arms"]["gated"]["kept"], content["arms"]["gated"]["rollouts"]) == (0.75, 0.5)
    assert content["curve"][-1]["accuracy"] == 1
    with_steps = {"a/fused-0": [before], "a/fused@4": [after], "a/gated@4": [before], "b/gated@4": [before]}
    named = gate_content(items, with_steps)
    assert named is not None
    assert list(named["arms"]) == ["a/gated@4"]
    assert gate_content(items, {"fused-0": [answered(["left"] * 4)], "fused": [after]}) is None, "of an earlier version"
    assert gate_content(items, {"fused": [after]}) is None


def test_the_gate_is_saved_with_the_model(family: Path, tmp_path: Path) -> None:
    TheWorld.from_pretrained(family / "fused", device="cpu").save_pretrained(tmp_path / "model")
    gating.save_gate(tmp_path / "model", Gate(0.75, 1.25))
    loaded = TheWorld.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.config.gate == {"min_confidence": 0.75, "max_jump": 1.25}
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["gate"] == loaded.config.gate
    with pytest.raises(ValueError, match=r"is not a folder with a config.json"):
        gating.save_gate(tmp_path, Gate())


def test_the_shipped_model_has_a_gate() -> None:
    gate = resolve_model("nano").config.gate
    assert gate is not None
    assert gate["max_jump"] is not None


def test_the_curve_is_written_as_data_or_as_a_plot(data: GateData, tmp_path: Path) -> None:
    curve, summary = gate_curve(data), gate_summary(data, choose_gate(data))
    gating.write_curve(tmp_path / "curve.json", curve, summary)
    assert json.loads((tmp_path / "curve.json").read_text())["curve"] == curve
    gating.write_curve(tmp_path / "curve.png", curve, summary)
    assert Image.open(tmp_path / "curve.png").width > 600
    with pytest.raises(ValueError, match=r"curve.txt': the curve is written as .json, .png, .svg"):
        gating.write_curve(tmp_path / "curve.txt", curve)
