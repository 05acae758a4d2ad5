"""The answer-parser table, and what is no answer counts as wrong."""

from dataclasses import replace

import numpy as np
import pytest

from theworld.evaluation.runner import Answer
from theworld.evaluation.scoring import commonest_answers, confusion, is_right, likeliest, read_answer, score
from theworld.evaluation.tasks import Item

IMAGE = np.zeros((2, 2, 3), dtype=np.uint8)


def item(answer: str, legal: str, family: str = "drop", form: str = "free") -> Item:
    return Item(answer, family, "topic", form, IMAGE, "Which?", answer, frozenset(legal.split()))


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
    assert (is_right(asked, prediction), read_answer(asked, prediction) is not None) == (right, parsed)


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
    assert (is_right(asked, prediction), read_answer(asked, prediction) is not None) == (right, parsed)


def said(items: list[Item], *texts: str) -> list[Answer]:
    return [Answer(one.id, text) for one, text in zip(items, texts, strict=True)]


def choice(answer: str, family: str = "p") -> Item:
    return replace(item(answer, "", family, form="choice"), choices=("the red ball", "the box", "neither"))


def test_choices_are_read_by_letter_or_text_and_several_at_once_are_unparsed() -> None:
    asked = choice("B")
    for text, right, parsed in (
        ("(B)", True, True),
        ("The answer is (B).", True, True),
        ("the box", True, True),
        ("A", False, True),
        ("A or B", False, False),
        ("D", False, False),
        ("I cannot tell.", False, False),
    ):
        assert (is_right(asked, text), read_answer(asked, text) is not None) == (right, parsed), text
    hidden = replace(asked, answer="")
    assert not is_right(hidden, "I cannot tell.")


def test_the_likeliest_option_is_scored_separately_from_the_text() -> None:
    asked = [choice("B"), choice("A"), item("left", "left right"), choice("C")]
    assert asked[2].options == ("left", "right")
    answers = [
        Answer("", "A", (-3.0, -0.1, -4.0)),
        Answer("", "A", (-3.0, -0.1, -4.0)),
        Answer("", "right", (-0.1, -2.0)),
        Answer("", "C", None),
    ]
    assert [likeliest(one, answer.logprobs) for one, answer in zip(asked, answers, strict=True)] == [
        "B",
        "B",
        "left",
        None,
    ]
    found = score(asked, [answers])
    assert found["accuracy"] == 0.5  # the second and the last text
    assert (found["likelihood"]["accuracy"], found["likelihood"]["undecided"]) == (0.5, 1)


def test_families_have_equal_weight_in_the_headline() -> None:
    asked = [choice("A", "large")] * 3 + [choice("A", "small")]
    found = score(asked, [said(asked, "A", "A", "A", "B")])
    assert (found["accuracy"], found["mean_of_families"]["accuracy"]) == (0.75, 0.5)


def test_training_seeds_are_pooled_by_question() -> None:
    asked = [choice("A")] * 4
    found = score(asked, [said(asked, "A", "A", "B", "B"), said(asked, "A", "B", "A", "B")])
    assert (found["accuracy"], found["n"], found["seed_accuracies"]) == (0.5, 4, [0.5, 0.5])
    assert score(asked, [said(asked, "A", "A", "B", "what?")])["unparsed"] == 1


def test_scores_by_horizon_if_it_is_known() -> None:
    asked = [replace(choice("A"), horizon=horizon) for horizon in (1, 1, 4)]
    found = score(asked, [said(asked, "A", "B", "A")])
    assert {name: row["accuracy"] for name, row in found["by_horizon"].items()} == {"1": 0.5, "4": 1.0}
    assert "by_horizon" not in score([choice("A")], [said([choice("A")], "A")])


def test_confusion_counts_parsed_answers_per_true_answer() -> None:
    asked = [choice("A"), choice("A"), choice("B")]
    assert confusion(asked, [said(asked, "A", "the box", "what?")]) == {"A": {"A": 1, "B": 1}, "B": {"unread": 1}}


def test_costs_are_means() -> None:
    asked = [choice("A")] * 2
    answers = [Answer("", "A", None, 100, 1, 0.5, 1.0, 2.0), Answer("", "A", None, 200, 3, 1.5, 0.0, 0.0)]
    means = {"seconds": 1.0, "rollout_seconds": 1.0, "rollouts": 0.5, "prompt_tokens": 150.0, "new_tokens": 2.0}
    assert score(asked, [answers])["cost"] == {**means, "passes": None}, "not known of earlier versions"
    answers = [replace(one, passes=passes) for one, passes in zip(answers, (6.0, 0.0), strict=True)]
    assert score(asked, [answers])["cost"] == {**means, "passes": 3.0}


def test_scores_by_family_and_counts_unparsed_answers() -> None:
    items = [item("yes", "yes no"), item("no", "yes no"), item("left", "left right", "tower")]
    found = score(items, [said(items, "yes", "perhaps", "Left.")])
    assert (found["accuracy"], found["n"], found["unparsed"]) == (pytest.approx(2 / 3), 3, 1)
    assert found["by_family"]["drop"]["accuracy"] == 0.5
    assert found["by_family"]["tower"] == {
        "accuracy": 1.0,
        "n": 1,
        "interval_95": found["by_family"]["tower"]["interval_95"],
    }
    assert found["interval_95"][0] < 2 / 3 < found["interval_95"][1]


def test_the_most_common_answer_is_taken_per_topic_and_form() -> None:
    items = [item("yes", "yes no"), item("yes", "yes no"), item("no", "yes no"), item("A", "A B", form="choice")]
    assert commonest_answers(items) == ["yes", "yes", "yes", "A"]
