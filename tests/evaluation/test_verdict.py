"""A report begins with its verdict, explains its arms, and shows first the questions that decide the result."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.planted import planted_benchmark, planted_run
from theworld.evaluation import compare
from theworld.evaluation.arms import ARMS
from theworld.evaluation.tasks import Item
from theworld.evaluation.verdict import explanations, opponent, verdict


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return planted_benchmark(tmp_path_factory.mktemp("questions"), 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> Path:
    """`fused` is wrong on 0 and 20, `no-world` on 1, 3, …, 39, and `random-projection` on 0 to 9 and 20."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    planted_run(folder, items, lambda n, world: "B" if (n in (0, 20) if world else n % 2) else "A")
    answers = [json.loads(line) for line in (folder / "answers" / "fused.jsonl").read_text().splitlines()]
    control = [{**answer, "text": "B" if n < 10 or n == 20 else "A"} for n, answer in enumerate(answers)]
    (folder / "answers" / "random-projection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in control))
    return folder


def test_the_page_begins_with_the_verdict_in_one_sentence(run: Path) -> None:
    results = compare(run)
    assert results.verdict == (
        "The use of world tokens helped: fused answered 95.0 % of 40 questions correctly, 45.0 percentage points more "
        "than no-world (95 % interval +25.0 to +62.5, p = 0.00024 after correction for 2 comparisons)."
    )
    page = re.sub(r"<style>.*?</style>|<title>.*?</title>", "", results.to_html(), flags=re.DOTALL)
    first = re.search(r"<p[^>]*>(.*?)</p>", page, flags=re.DOTALL)
    assert first is not None
    assert first[1].replace("&nbsp;", " ") == results.verdict
    assert "fused is better than random-projection (+22.5)." in page
    assert results.verdict in results.to_markdown()


def test_the_first_disagreements_are_those_that_decide_the_result(run: Path) -> None:
    """Those where `fused` and its control differ come first, alternating; where one control alone is wrong, last."""
    content = compare(run).content
    order = [int(entry["id"][1:]) for entry in content["disagreements"]]
    decisive = {0, 20, *range(1, 40, 2)}
    assert set(order[: len(decisive)]) == decisive
    assert {0, 20} & set(order[:3]), "the two that fused loses are not left to the end"
    assert sorted(order[len(decisive) :]) == [2, 4, 6, 8], "only random-projection is wrong there"
    page = compare(run).to_html()
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == [
        "Only fused is correct: 20 of 40 questions",
        "Only no-world is correct: 2 of 40 questions",
        "Other disagreements",
    ]


def test_each_arm_is_explained_on_the_page(run: Path) -> None:
    page = compare(run).to_html()
    for name in ("fused", "no-world", "random-projection"):
        assert f"<dt><code>{name}</code></dt><dd>{ARMS[name].meaning[0].upper()}{ARMS[name].meaning[1:]}. " in page


def test_every_arm_has_an_explanation_with_its_steps_and_its_run() -> None:
    found = explanations([*ARMS, "futures-3", "a/averaged-16@4"])
    assert all(text.count(". ") >= 1 and text.endswith(".") for text in found.values())
    assert found["a/averaged-16@4"] == (
        "World tokens of the mean of 16 imagined futures, with 4 world steps. Shows whether the mean of several "
        "futures is better than one. Of a."
    )


def test_an_arm_of_a_users_own_is_explained_by_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "mine", replace(ARMS["zero"], meaning="tokens of my own"))
    assert explanations(["mine"]) == {"mine": "Tokens of my own."}


def test_the_page_follows_the_colour_scheme_of_the_reader(run: Path) -> None:
    """Every colour of a plot is a variable of the page, except in the cells of heat maps."""
    page = compare(run).to_html()
    assert "prefers-color-scheme: dark" in page
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    colours = {colour for plot in plots for colour in re.findall(r"(?:fill|stroke): (#\w+)", plot)}
    assert colours <= {"#1c2431", "#ffffff"}
    defined = set(re.findall(r"(--\w+):", page))
    assert {name for plot in plots for name in re.findall(r"var\((--\w+)\)", plot)} <= defined


@pytest.mark.parametrize(
    ("reference", "names", "expected"),
    [
        ("fused", ["fused", "random-projection", "no-world", "fused-0"], "fused-0"),
        ("fused", ["fused", "zero", "gemma"], "gemma"),
        ("fused", ["fused", "zero", "shuffled"], "zero"),
        ("b/fused@4", ["a/fused-0", "a/fused@4", "b/fused-0", "b/fused@4"], "b/fused-0"),
        ("b/fused", ["a/fused", "a/fused-0", "b/fused"], "a/fused"),
        ("zero", ["fused-0", "zero"], "fused-0"),
        ("fused", ["fused"], None),
    ],
)
def test_the_verdict_rests_on_the_best_control(reference: str, names: list[str], expected: str | None) -> None:
    assert opponent(reference, names) == expected


def content_of(finding: str, difference: float, reference: str = "fused", other: str = "fused-0") -> dict[str, Any]:
    pair = {"finding": finding, "difference": difference, "interval_95": [-0.02, 0.031], "p_holm": 1e-9}
    arms = {name: {"accuracy": 0.5, "n": 1000, "interval_95": [0.4, 0.6]} for name in (reference, other)}
    return {"reference": reference, "arms": arms, "paired": {f"{reference}-minus-{other}": pair}}


@pytest.mark.parametrize(
    ("content", "start", "end"),
    [
        (content_of("better", 0.2), "The imagined future helped: fused", "20.0 percentage points more than fused-0"),
        (content_of("worse", -0.2), "The imagined future did harm: fused", "20.0 percentage points less than fused-0"),
        (content_of("not shown", 0.0), "It is not shown that the imagined future changed", "as many as fused-0"),
        (content_of("worse", -0.2, other="x/zero"), "fused is worse than x/zero: fused", "less than x/zero"),
        (content_of("not shown", 0.01, "a/fused", "b/fused"), "No difference between a/fused and b/fused is", "more"),
    ],
)
def test_a_verdict_says_what_how_much_and_how_sure(content: dict[str, Any], start: str, end: str) -> None:
    sentence = verdict(content)
    assert sentence.startswith(start)
    assert end in sentence
    assert sentence.endswith("(95 % interval -2.0 to +3.1, p < 0.0001).")
    assert sentence.count(". ") == 0


def test_one_arm_and_hidden_answers_have_their_own_sentence(items: list[Item], tmp_path: Path) -> None:
    planted_run(tmp_path / "one", items, lambda n, world: "A", "fused")
    assert compare(tmp_path / "one").verdict == (
        "fused answered 100.0 % of 40 questions correctly (95 % interval 91.2 to 100.0 %); with a single arm there is "
        "nothing to compare it with."
    )
    assert "no accuracy is claimed" in verdict({"hidden": True})
