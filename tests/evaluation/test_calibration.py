"""Calibration of planted likelihoods comes out as computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from theworld.evaluation import calibration as module
from theworld.evaluation.calibration import calibration, compare_calibration, predictions
from theworld.evaluation.results import summarise
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import Item


def items(n: int) -> list[Item]:
    return [Item(str(row), "drop", "bin", "free", None, "?", "left", frozenset({"left", "right"})) for row in range(n)]


def answers(left: Sequence[float | None], scale: float = 1.0) -> list[Answer]:
    """Answers whose likelihoods give `left` this probability; the correct answer is always left."""
    return [
        Answer(
            str(row), "left", None if p is None else tuple(float(np.log(max(q * scale, 1e-300))) for q in (p, 1 - p))
        )
        for row, p in enumerate(left)
    ]


def found(left: Sequence[float | None], scale: float = 1.0) -> dict[str, float]:
    return calibration(predictions(items(len(left)), [answers(left, scale)]))  # type: ignore[arg-type]


def test_error_and_score_by_hand() -> None:
    # confidences 0.8 (right), 0.85 (wrong: left has 0.15), 1.0 (right), 0.55 (right)
    scores = found([0.8, 0.15, 1.0, 0.55])
    # bin 0.8: accuracy 0.5, confidence 0.825; bin 0.9: 1 and 1; bin 0.5: 1 and 0.55
    assert scores["ece"] == pytest.approx((2 * 0.325 + 0 + 0.45) / 4)
    assert scores["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.85**2 + 0 + 2 * 0.45**2) / 4)
    assert (scores["n"], scores["accuracy"], scores["confidence"]) == (4, 0.75, pytest.approx(0.8))
    assert [(row["low"], row["n"]) for row in scores["bins"]] == [(0.5, 1), (0.8, 2), (0.9, 1)]  # type: ignore[attr-defined]


def test_likelihoods_need_not_sum_to_one() -> None:
    assert found([0.8, 0.15, 1.0, 0.55], scale=0.01)["ece"] == pytest.approx(found([0.8, 0.15, 1.0, 0.55])["ece"])


def test_a_model_that_knows_how_often_it_is_right_has_no_error() -> None:
    scores = found([0.75] * 3 + [0.25])  # 0.75 each, of which three of four are right
    assert scores["ece"] == pytest.approx(0)
    low, high = scores["ece_interval_95"]  # type: ignore[misc]
    assert 0 <= low <= high <= 0.75


def test_undecided_answers_are_left_out() -> None:
    assert found([0.8, None, 1.0])["n"] == 2
    assert found([0.8, None, 1.0])["ece"] == pytest.approx(0.1)
    assert predictions(items(2), [answers([None, None])]) is None
    hidden = [Item("0", "", "", "free", None, "?", "", frozenset({"left", "right"}))]
    assert predictions(hidden, [answers([0.5])]) is None


def test_arms_are_compared_on_the_same_resamples() -> None:
    over = predictions(items(40), [answers([0.99] * 30 + [0.01] * 10)])
    well = predictions(items(40), [answers([0.75] * 30 + [0.25] * 10)])
    assert over is not None
    assert well is not None
    pair = compare_calibration(over, well)
    assert pair is not None
    assert pair["ece_difference"] == pytest.approx(0.24)
    # with the same questions in both, 0.99 - a and 0.75 - a differ by 0.24 at most, whatever the accuracy a
    assert pair["ece_interval_95"][1] == pytest.approx(0.24, abs=1e-5)
    same = compare_calibration(over, over)
    assert same is not None
    assert (same["ece_difference"], same["ece_interval_95"], same["brier_interval_95"]) == (0, [0, 0], [0, 0])
    assert compare_calibration(over, predictions(items(40), [answers([None] * 39 + [0.5])])) is not None


def test_an_interval_covers_what_resampling_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectorised resamples are those of a plain loop over questions."""
    rng = np.random.default_rng(1)
    one = predictions(items(30), [answers(rng.uniform(size=30).tolist())])
    assert one is not None
    errors = module.resampled_errors(one)
    counts = module.resampled_counts(30)
    for number in (0, 17):
        rows = np.repeat(np.arange(30), counts[number])
        drawn = module.Predictions(one.confidence[:, rows], one.right[:, rows], one.errors[:, rows])
        assert errors[number] == pytest.approx(module.calibration_error(drawn), abs=1e-5)


def test_training_seeds_are_pooled_by_question() -> None:
    seeds = [answers([0.8, 0.6]), answers([0.8, None])]
    pooled = predictions(items(2), seeds)
    assert pooled is not None
    assert calibration(pooled)["n"] == 3
    assert calibration(pooled)["ece"] == pytest.approx((2 * 0.2 + 0.4) / 3)


def test_results_contain_the_calibration_of_each_arm_that_has_probabilities() -> None:
    arms = {"fused": [answers([0.9] * 4)], "no-world": [answers([0.6] * 4)], "gemma": [answers([None] * 4)]}
    content = summarise(items(4), arms)
    assert content["arms"]["fused"]["calibration"]["ece"] == pytest.approx(0.1)
    assert "calibration" not in content["arms"]["gemma"]
    assert content["paired"]["fused-minus-no-world"]["calibration"]["ece_difference"] == pytest.approx(-0.3)
    assert "calibration" not in content["paired"]["fused-minus-gemma"]
