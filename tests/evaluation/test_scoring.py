"""The answer-parser table, and what is no answer counts as wrong."""

import numpy as np
import pytest

from theworld.evaluation.items import Item
from theworld.evaluation.scoring import commonest_answers, is_parsed, is_right, score

PICTURE = np.zeros((2, 2, 3), dtype=np.uint8)


def item(answer: str, legal: str, family: str = "drop", form: str = "free") -> Item:
    return Item(answer, family, "topic", form, PICTURE, "Which?", answer, frozenset(legal.split()))


@pytest.mark.parametrize(
    ("prediction", "right", "parsed"),
    [
        ("left", True, True),
        ("Left.", True, True),
        ("  left \n", True, True),
        ("right", False, True),
        ("left bin", False, False),
        ("the left", False, False),
        ("", False, False),
        ("lef", False, False),
    ],
)
def test_free_answers(prediction: str, right: bool, parsed: bool) -> None:
    asked = item("left", "left middle right")
    assert (is_right(asked, prediction), is_parsed(asked, prediction)) == (right, parsed)


@pytest.mark.parametrize(
    ("prediction", "right", "parsed"),
    [
        ("B", True, True),
        ("(B)", True, True),
        ("(b).", True, True),
        ("b", True, True),
        ("A", False, True),
        ("D", False, False),
        ("left", False, False),  # the letter was asked for
        ("(B", False, False),
    ],
)
def test_letters(prediction: str, right: bool, parsed: bool) -> None:
    asked = item("B", "A B C", form="choice")
    assert (is_right(asked, prediction), is_parsed(asked, prediction)) == (right, parsed)


def test_scores_by_family_and_counts_what_is_no_answer() -> None:
    items = [item("yes", "yes no"), item("no", "yes no"), item("left", "left right", "tower")]
    found = score(items, ["yes", "perhaps", "Left."])
    assert (found["accuracy"], found["n"], found["unparsed"]) == (pytest.approx(2 / 3), 3, 1)
    assert found["by_family"]["drop"]["accuracy"] == 0.5
    assert found["by_family"]["tower"] == {
        "accuracy": 1.0,
        "n": 1,
        "interval_95": found["by_family"]["tower"]["interval_95"],
    }
    assert found["interval_95"][0] < 2 / 3 < found["interval_95"][1]


def test_the_commonest_answer_is_taken_per_topic_and_form() -> None:
    items = [item("yes", "yes no"), item("yes", "yes no"), item("no", "yes no"), item("A", "A B", form="choice")]
    assert commonest_answers(items) == ["yes", "yes", "yes", "A"]
