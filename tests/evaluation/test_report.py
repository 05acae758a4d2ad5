"""The result file: what it holds, what it warns of, and that it is whole."""

import json
from pathlib import Path

import numpy as np
import pytest

from theworld.evaluation import report
from theworld.evaluation.items import Item


def items(n: int) -> list[Item]:
    picture = np.zeros((2, 2, 3), np.uint8)
    families = ("drop", "tower")
    return [
        Item(str(i), families[i % 2], "topic", "free", picture, "Which?", "yes", frozenset({"yes", "no"}))
        for i in range(n)
    ]


def test_results_compare_every_arm_with_fused_question_by_question() -> None:
    asked = items(4)
    found = report.results(asked, {"direct": ["no", "yes", "no", "yes"], "fused": ["yes"] * 4})
    assert found["arms"]["fused"]["accuracy"] == 1.0
    pair = found["paired"]["fused-minus-direct"]
    assert pair["difference"] == 0.5
    assert pair["by_family"]["drop"]["difference"] == 1.0
    assert pair["by_family"]["tower"]["difference"] == 0.0
    assert found["commonest_answer"]["accuracy"] == 1.0


def test_arms_that_answer_alike_and_unreadable_answers_are_warned_of() -> None:
    asked = items(20)
    found = report.results(asked, {"fused": ["yes"] * 20, "fused-0": ["yes"] * 20, "zero": ["maybe"] * 20})
    assert found["warnings"] == [
        "fused and fused-0 gave the same answer to all 20 questions.",
        "20 of 20 answers of zero are no answer to their question.",
    ]
    assert found["arms"]["zero"]["unparsed"] == 20


def test_predictions_are_one_line_a_question() -> None:
    lines = report.prediction_lines(items(2), {"fused": ["yes", "nö"], "zero": ["a", "b"]}).splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["predictions"] == {"fused": "nö", "zero": "b"}
    assert report.predictions_path("runs/x.json") == Path("runs/x.predictions.jsonl")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write_text(tmp_path / "new" / "a.json", "1")
    assert (tmp_path / "new" / "a.json").read_text() == "1"

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write_text(tmp_path / "new" / "a.json", "2")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert (tmp_path / "new" / "a.json").read_text() == "1"


def test_labels_are_read_beside_the_weights_or_beside_their_folder(tmp_path: Path) -> None:
    (tmp_path / "fused").mkdir()
    assert report.labels(tmp_path / "fused") == {}
    (tmp_path / "provenance.json").write_text(
        '{"labelled_scenes_per_family": 300, "unlabelled_clips": 9, "commit": "a"}'
    )
    assert report.labels(tmp_path / "fused") == {"labelled_scenes_per_family": 300, "unlabelled_clips": 9}
    (tmp_path / "fused" / "provenance.json").write_text('{"labelled_scenes_per_family": 100}')
    assert report.labels(tmp_path / "fused") == {"labelled_scenes_per_family": 100}


def test_versions_name_what_decides_the_numbers() -> None:
    assert {"python", "torch", "transformers", "diffusers"} <= set(report.versions())
