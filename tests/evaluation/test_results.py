"""The result file: what it holds, what it warns of, and that it is whole."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from theworld.evaluation import results
from theworld.evaluation.render import to_terminal
from theworld.evaluation.runner import Answer
from theworld.evaluation.statistics import NO_DIFFERENCE, questions_needed
from theworld.evaluation.tasks import Item
from theworld.inspection import provenance


def items(n: int) -> list[Item]:
    image = np.zeros((2, 2, 3), np.uint8)
    families = ("drop", "tower")
    return [
        Item(str(i), families[i % 2], "topic", "free", image, "Which?", "yes", frozenset({"yes", "no"}))
        for i in range(n)
    ]


def said(texts: list[str]) -> list[list[Answer]]:
    return [[Answer(str(row), text) for row, text in enumerate(texts)]]


def test_results_compare_every_arm_with_fused_question_by_question() -> None:
    asked = items(4)
    found = results.summarise(asked, {"direct": said(["no", "yes", "no", "yes"]), "fused": said(["yes"] * 4)})
    assert found["arms"]["fused"]["accuracy"] == 1.0
    pair = found["paired"]["fused-minus-direct"]
    assert pair["difference"] == 0.5
    assert pair["by_family"]["drop"]["difference"] == 1.0
    assert pair["by_family"]["tower"]["difference"] == 0.0
    assert found["commonest_answer"]["accuracy"] == 1.0


def test_a_planted_effect_comes_out_exactly_as_it_was_planted() -> None:
    """100 questions; fused right on 80; one control worse on 20 and better on 5 of them, one like it but for noise."""
    asked = items(100)
    right, wrong = "yes", "no"
    fused = [right] * 80 + [wrong] * 20
    worse = [wrong] * 20 + [right] * 65 + [wrong] * 15  # 20 lost, 5 won: 65 right
    noise = [wrong] * 4 + [right] * 79 + [wrong] * 17  # 4 lost, 3 won: 79 right
    found = results.summarise(asked, {"fused": said(fused), "control": said(worse), "like": said(noise)})
    assert {name: score["accuracy"] for name, score in found["arms"].items()} == {
        "fused": 0.8, "control": 0.65, "like": 0.79
    }  # fmt: skip
    control, like = found["paired"]["fused-minus-control"], found["paired"]["fused-minus-like"]
    assert (control["difference"], control["only_first"], control["only_second"]) == (pytest.approx(0.15), 20, 5)
    # two-sided binomial: 2·Σ C(25, i), i = 0…5, over 2**25
    assert control["p_mcnemar"] == pytest.approx(2 * 68406 / 2**25)
    assert like["p_mcnemar"] == 1.0
    assert control["p_holm"] == pytest.approx(2 * control["p_mcnemar"])
    assert (control["finding"], like["finding"]) == ("better", NO_DIFFERENCE)
    assert control["questions_for_points"]["10"] == questions_needed(0.1, 0.25)
    assert found["reference"] == "fused"
    assert found["confusion"]["fused"] == {"yes": {"no": 20, "yes": 80}}
    assert control["mean_of_families"]["difference"] == pytest.approx(0.15)
    families = [row["p_holm"] for pair in found["paired"].values() for row in pair["by_family"].values()]
    assert len(families) == 4
    assert all(p >= row for p, row in zip(families, [0.0] * 4, strict=True))


def test_where_the_truth_is_hidden_nothing_is_claimed() -> None:
    asked = [replace(item, answer="") for item in items(3)]
    found = results.summarise(asked, {"fused": said(["yes", "no", "what?"])})
    assert found["hidden"] is True
    assert set(found["arms"]["fused"]) == {"n", "unparsed", "cost"}
    assert found["arms"]["fused"]["unparsed"] == 1
    assert "paired" not in found
    with pytest.raises(ValueError, match="evaluate them separately"):
        results.summarise([*asked, items(4)[3]], {"fused": said(["yes"] * 4)})


def test_arms_that_answer_alike_and_unreadable_answers_are_warned_of() -> None:
    asked = items(20)
    found = results.summarise(
        asked, {"fused": said(["yes"] * 20), "fused-0": said(["yes"] * 20), "zero": said(["maybe"] * 20)}
    )
    assert found["warnings"] == [
        "fused and fused-0 gave the same answer to all 20 questions.",
        "20 of 20 answers of zero could not be parsed.",
    ]
    assert found["arms"]["zero"]["unparsed"] == 20


def test_predictions_are_one_record_per_question(tmp_path: Path) -> None:
    arms = {"fused": said(["yes", "nö"]), "zero": said(["a", "No."])}
    found = results.Results(results.summarise(items(2), arms), items(2), {name: own[0] for name, own in arms.items()})
    found.to_json(tmp_path / "runs" / "x.json")
    lines = (tmp_path / "runs" / "x.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["predictions"] == {"fused": "nö", "zero": "No."}
    assert json.loads(lines[1])["read"] == {"fused": None, "zero": "no"}
    assert json.loads((tmp_path / "runs" / "x.json").read_text())["arms"]["fused"]["accuracy"] == 0.5


def test_labels_are_read_beside_the_weights_or_beside_their_folder(tmp_path: Path) -> None:
    (tmp_path / "fused").mkdir()
    assert provenance.labels(tmp_path / "fused") == {}
    (tmp_path / "provenance.json").write_text(
        '{"labelled_scenes_per_family": 300, "unlabelled_clips": 9, "commit": "a"}'
    )
    assert provenance.labels(tmp_path / "fused") == {"labelled_scenes_per_family": 300, "unlabelled_clips": 9}
    (tmp_path / "fused" / "provenance.json").write_text('{"labelled_scenes_per_family": 100}')
    assert provenance.labels(tmp_path / "fused") == {"labelled_scenes_per_family": 100}


def test_versions_name_what_decides_the_numbers() -> None:
    assert {"python", "torch", "transformers", "diffusers"} <= set(provenance.versions())


@pytest.mark.parametrize("width", [40, 80])
def test_no_figure_is_cut_in_a_narrow_terminal(width: int) -> None:
    content = json.loads((Path(__file__).parents[2] / "docs" / "nano" / "physics_test.json").read_text())
    file = io.StringIO()
    to_terminal(content, Console(width=width, file=file))
    for arm, score in content["arms"].items():
        low, high = (f"{100 * value:.1f}" for value in score["interval_95"])
        assert re.search(rf"^{arm} +{100 * score['accuracy']:.1f} % +{low}–{high} ", file.getvalue(), re.MULTILINE), arm
