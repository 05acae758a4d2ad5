"""Planted answers give the planted accuracy and significance exactly, from questions on disk to the page."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.planted import planted_benchmark, planted_run
from theworld.evaluation import compare, tasks
from theworld.evaluation.plots import by_steps
from theworld.evaluation.render import to_html
from theworld.evaluation.run_folder import RUN
from theworld.evaluation.statistics import NO_DIFFERENCE
from theworld.evaluation.tasks import Item


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def items(folder: Path) -> list[Item]:
    return planted_benchmark(folder, 40)


@pytest.fixture(scope="module")
def run(folder: Path, items: list[Item]) -> Path:
    """World on: right on 32 of 40, 2 unread. World off: 12 of those wrong, 2 others right, so 22."""

    def says(number: int, world: bool) -> str:
        if world:
            return "(A)" if number < 32 else ("I cannot tell." if number >= 38 else "The answer is (B).")
        return "the cup" if 12 <= number < 34 else "B."

    planted_run(folder / "one", items, says)
    return folder / "one"


def test_planted_accuracy_and_significance_come_out_exactly(run: Path) -> None:
    content = compare(run).content
    fused, off = content["arms"]["fused"], content["arms"]["no-world"]
    assert (fused["accuracy"], off["accuracy"], fused["n"]) == (32 / 40, 22 / 40, 40)
    assert (fused["unparsed"], off["unparsed"]) == (2, 0)
    assert fused["by_family"]["near"]["accuracy"] == 16 / 20
    assert fused["likelihood"]["accuracy"] == 0.0  # the planted model favours (B) throughout
    pair = content["paired"]["fused-minus-no-world"]
    assert (pair["only_first"], pair["only_second"], pair["difference"]) == (12, 2, 10 / 40)
    # two-sided binomial of 2 among 14: 2·(1 + 14 + 91)/2**14
    assert pair["p_mcnemar"] == pytest.approx(212 / 2**14)
    assert pair["p_holm"] == pair["p_mcnemar"]
    assert pair["finding"] == "better"
    assert pair["disagreement"] == 14 / 40
    assert content["confusion"]["fused"] == {"A": {"A": 32, "B": 6, "unread": 2}}
    assert content["commonest_answer"]["accuracy"] == 1.0
    assert content["warnings"] == []
    assert [entry["answers"]["fused"]["correct"] for entry in content["disagreements"]].count(True) == 12


def test_training_seeds_are_pooled_and_noise_between_them_is_no_finding(folder: Path, items: list[Item]) -> None:
    for seed in range(3):
        planted_run(folder / f"a{seed}", items, lambda n, world, s=seed: "A" if (n + s) % 4 else "B", "fused")
        planted_run(folder / f"b{seed}", items, lambda n, world, s=seed: "A" if (n + s) % 5 else "B", "fused")
    group = {name: ",".join(str(folder / f"{name}{seed}") for seed in range(3)) for name in "ab"}
    results = compare([f"{name}={folders}" for name, folders in group.items()], reference="b/fused")
    content = results.content
    assert content["arms"]["a/fused"]["seed_accuracies"] == [0.75] * 3
    assert content["arms"]["b/fused"]["accuracy"] == pytest.approx(0.8)
    pair = content["paired"]["b/fused-minus-a/fused"]
    assert (pair["n"], pair["seeds"]) == (40, [3, 3])
    assert pair["difference"] == pytest.approx(0.05)
    assert pair["finding"] == NO_DIFFERENCE
    assert "p_sign_flip" in pair
    assert "3 points" in results.to_html()


def test_runs_with_several_numbers_of_steps_make_a_curve(folder: Path, items: list[Item]) -> None:
    for steps, right in ((0, 20), (4, 30)):
        planted_run(folder / f"n{steps}", items, lambda n, world, r=right: "A" if n < r else "B", "fused", steps=steps)
    results = compare([folder / "n0", folder / "n4"])
    content = results.content
    ((name, points),) = content["steps"].items()
    assert name == "planted: fused"
    assert [(point["steps"], point["accuracy"]) for point in points] == [(0, 0.5), (4, 0.75)]
    assert content["reference"] == "n4/fused"
    assert "Accuracy against world steps" in results.to_html()


def test_what_cannot_be_compared_is_said(run: Path, folder: Path, items: list[Item]) -> None:
    planted_run(folder / "fewer", items[:20], lambda n, world: "A", limit=20)
    with pytest.raises(ValueError, match=r"fewer has other questions than .*one.*compare runs of the same"):
        compare([run, folder / "fewer"])
    with pytest.raises(ValueError, match="Duplicate run"):
        compare([run, run])
    with pytest.raises(ValueError, match="write RUN, or NAME=RUN"):
        compare("name=")
    with pytest.raises(ValueError, match="Two groups of runs are named 'x'"):
        compare([f"x={run}", f"x={folder / 'fewer'}"])
    with pytest.raises(ValueError, match="no arm 'fusd' to compare with; choose one of fused, no-world"):
        compare(run, reference="fusd")
    planted_run(folder / "four", items, lambda n, world: "A", "fused", steps=4)
    planted_run(folder / "none", items, lambda n, world: "A", "fused", steps=0)
    with pytest.raises(ValueError, match="training seeds of one model must have the same settings"):
        compare(f"a={folder / 'four'},{folder / 'none'}")


def test_an_arm_that_was_cut_off_is_left_out_with_a_note(folder: Path, items: list[Item]) -> None:
    planted_run(folder / "cut", items, lambda n, world: "A")
    place = folder / "cut" / "answers" / "no-world.jsonl"
    place.write_text("".join(place.read_text().splitlines(keepends=True)[:5]))
    content = compare(folder / "cut").content
    assert list(content["arms"]) == ["fused"]
    assert content["notes"] == [f"no-world of {folder / 'cut'} has 5 of 40 answers and is left out; finish the run."]
    for file in (folder / "cut" / "answers").iterdir():
        file.write_text("")
    with pytest.raises(ValueError, match="No arm of these runs"):
        compare([folder / "cut"])


class Outside(HTMLParser):
    """Everything of a page that lies outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href") or (name == "xlink:href" and not (value or "").startswith("#"))
            if outside and not (value or "").startswith(("data:", "#")):
                self.found.append(f"{tag} {name}={value}")


@pytest.mark.parametrize("images_folder", ["images", "pictures"])  # the second is that of older runs
def test_the_page_needs_no_other_file_and_shows_the_answers(run: Path, items: list[Item], images_folder: str) -> None:
    from theworld.evaluation.disagreements import save_images

    shutil.rmtree(run / "images", ignore_errors=True)
    save_images(run / images_folder, items, list(range(12)), None, 1, 0)
    results = compare(run)
    page = results.to_html()
    reader = Outside()
    reader.feed(page)
    assert reader.found == []
    assert reader.tags.count("svg") == 4  # by arm, by sub-task, reliability, cost
    assert reader.tags.count("img") == 12
    assert "<script" not in page
    for shown in ("80.0 %", "+25.0", "better", "only one correct", "I cannot tell.", "Which of the two is it, 3?"):
        assert shown in page, shown
    assert compare(run).to_html() == page  # the same comparison, the same file
    hostile = json.loads(json.dumps(results.content))
    hostile["disagreements"][0]["answers"]["fused"]["text"] = "<script>alert(1)</script>"
    assert "<script>" not in to_html(hostile)


def test_imagined_strips_stand_beside_what_was_seen_or_the_reason_is_told(
    family: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from theworld.evaluation.answering import ModelAnswerer
    from theworld.evaluation.arms import Imagination
    from theworld.evaluation.disagreements import read_index, save_images
    from theworld.inference.pipeline import TheWorld

    shared = Imagination(ModelAnswerer(TheWorld.from_pretrained(family / "fused", device="cpu")))
    assert save_images(tmp_path / "a", items, [3, 5], shared, 2, 0) is None
    index = read_index(tmp_path / "a")
    assert list(index) == ["q3", "q5"]
    assert Image.open(tmp_path / "a" / index["q3"]["seen"]).size == (112, 112)
    assert Image.open(tmp_path / "a" / index["q3"]["imagined"]).size == (2 * 112 + 4, 112)  # two world steps

    def guarded(*args: object, **settings: object) -> None:
        raise ValueError("install the guardrail first")

    monkeypatch.setattr(TheWorld, "decode", guarded)
    assert save_images(tmp_path / "b", items, [3], shared, 2, 0) == "install the guardrail first"
    assert list(read_index(tmp_path / "b")["q3"]) == ["seen"]
    assert save_images(tmp_path / "c", items, [], None, 2, 0) is None, "where arms agree nothing is missing"
    assert save_images(tmp_path / "d", items, [3], None, 2, 0) == "nothing was imagined"


def test_the_markdown_has_the_same_figures(run: Path) -> None:
    results = compare(run)
    text = results.to_markdown()
    # always 62.2 % sure of (B), which is never correct; one rollout of three passes per question
    scores, cost = r"80.0 % \| 65.2–89.5 \| 80.0 % \| 80.0 %", r"1 \| 3 \| [\d.e-]+"
    assert re.search(rf"\| `fused` \| {scores} \| {cost} \| 0.0 % \| 0 \| 0.622 \| 2 \| 40 \|", text)
    assert "| `fused` | 0.622 | 0.622 … 0.622 | 0.775 |" in text
    assert re.search(r"\| fused − no-world \| \+25\.0 \| \+7\.5 … \+42\.5 \|.*\| 0\.013 \| 0\.013 \| better \|", text)
    assert results.accuracies == {"fused": 0.8, "no-world": 0.55, "(most common answer)": 1.0}
    assert results.intervals["fused"] == pytest.approx((0.652, 0.895), abs=1e-3)
    assert results.paired["no-world"]["finding"] == "better"
    assert next(row["by_family"] for row in results.rows()) == {"far": 0.8, "near": 0.8}


def test_hidden_answers_claim_no_accuracy(folder: Path, items: list[Item]) -> None:
    from dataclasses import replace

    hidden = [replace(item, answer="") for item in items]
    planted_run(folder / "hidden", hidden, lambda n, world: "A" if n else "what?")
    results = compare(folder / "hidden")
    assert results.hidden
    for text in (results.to_markdown(), results.to_html()):
        assert "no accuracy is claimed" in text
        assert "%" not in text.replace("95 %", "").partition("<style>")[0] + text.partition("</style>")[2].replace(
            "95 %", ""
        )


def test_limits_are_spread_evenly_over_the_tasks(items: list[Item]) -> None:
    chosen = tasks.limit_evenly(items, 5)
    assert [item.family for item in chosen].count("near") == 3
    assert [item.id for item in chosen] == sorted((item.id for item in chosen), key=lambda name: int(name[1:]))
    assert tasks.limit_evenly(items, 100) == items
    with pytest.raises(ValueError, match="limit is 0"):
        tasks.limit_evenly(items, 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mqc", {}, "no benchmark 'mqc'; did you mean 'mcq'"),
        ("weather", {}, "no benchmark 'weather'; choose one of physics, blink, mcq"),
        ("mcq", {}, "no data of its own"),
        ("physics", {"data": "x"}, "physics benchmark generates its scenes"),
        ("physics", {"tasks": ("pour",)}, "no family 'pour'"),
        ("blink", {"split": "train"}, "no split 'train'"),
    ],
)
def test_what_cannot_be_asked_is_said(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load_benchmark(name, tasks.Request(**settings))


def test_a_task_that_a_set_does_not_have_is_said(folder: Path, items: list[Item]) -> None:
    place = str(folder / "planted.jsonl")
    with pytest.raises(ValueError, match=r"no task 'nera' in .*; it has near, far"):
        tasks.load_benchmark("mcq", tasks.Request(data=place, tasks=("nera",)))
    assert {item.family for item in tasks.load_benchmark("mcq", tasks.Request(data=place, tasks=("near",)))} == {"near"}


def test_a_run_says_what_it_is(run: Path) -> None:
    content = json.loads((run / RUN).read_text())
    assert set(content) == {"settings", "questions", "fingerprint"}


def test_a_bound_a_rounding_past_its_figure_is_drawn() -> None:
    point = {"steps": 4, "accuracy": 1.0, "interval_95": (0.75, 1.0 - 2**-53)}
    assert "<svg" in by_steps({"fused": [point]})
