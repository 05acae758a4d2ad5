"""Questions: right answers, unique ids, balance, and states of the last image that agree with the future."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from theworld.datasets.physics import FAMILIES, Clip, Question, balanced, make_clip, next_questions, now_questions
from theworld.datasets.physics.simulation import Part


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [make_clip(family, "validation", index) for family in FAMILIES for index in range(12)]


def read(question: Question) -> str:
    """The answer in words, for either form."""
    return question.choices["ABCD".index(question.answer)] if question.form == "choice" else question.answer


def test_ids_are_unique_and_questions_repeat_exactly(clips: list[Clip]) -> None:
    for clip in clips:
        questions = next_questions(clip) + now_questions(clip, 0) + now_questions(clip, 16)
        assert len({question.id for question in questions}) == len(questions)
        assert questions == next_questions(clip) + now_questions(clip, 0) + now_questions(clip, 16)
        assert 2 <= len(next_questions(clip)) <= 8


def test_choices_hold_the_answer_once(clips: list[Clip]) -> None:
    for question in (q for clip in clips for q in next_questions(clip) + now_questions(clip, 8)):
        assert (question.form == "choice") == bool(question.choices)
        assert len(set(question.choices)) == len(question.choices)
        for letter, choice in zip("ABCD", question.choices, strict=False):
            assert f"({letter}) {choice}" in question.text


def test_now_forms_have_the_same_answer_in_the_last_image(clips: list[Clip]) -> None:
    for clip in clips:
        states = {}
        for question in now_questions(clip, 16):
            states.setdefault((question.topic, question.form), set()).add(read(question))
        for question in next_questions(clip):
            assert question.kind == "next"
            assert question.now_form is not None
            assert "ill " not in question.now_form
            if question.topic in ("bin_colour", "touching", "stack"):
                assert read(question) in states[question.topic, question.form]
            if question.topic in ("bin_colour", "touching", "stack"):
                assert read(question) == clip.outcome


def planted() -> Clip:
    """Red ball at column 2, row 3 next to nothing; blue box at column 7, row 8; ramp down to the right."""
    parts = (
        Part("ground", "black", "box", (64.0, 4.0), 32.0, 62.0),
        Part("ramp", "green", "box", (20.0, 4.0), 35.0, 30.0, 0.4),
        Part("box", "blue", "box", (8.0, 6.0), 52.0, 59.0, role="blue"),
        Part("ball", "yellow", "circle", (4.0,), 36.0, 12.0, density=1.0),
        Part("ball", "red", "circle", (4.0,), 12.0, 20.0, density=1.0, role="red"),
    )
    poses = np.array([[(part.x, part.y, part.angle)] * 17 for part in parts])
    poses[-1, 16, :2] = 44.1, 56.0  # and touching the box in the end
    return Clip("contact", "train", 0, np.zeros((17, 64, 64, 3), np.uint8), "yes", parts, poses, 0)


def test_answers_about_a_planted_scene() -> None:
    said = {(q.topic, q.id.split("/")[-1]): q.answer for q in now_questions(planted(), 0) if q.form == "free"}
    assert said["column", "the_red_ball"] == "2"
    assert said["row", "the_red_ball"] == "3"
    assert said["column", "the_blue_box"] == "7"
    assert said["row", "the_blue_box"] == "8"
    assert said["tilt", "the_green_ramp"] == "right"
    assert said["count", "balls"] == "2"
    assert said["count", "boxes"] == "1"
    assert said["count", "hills"] == "0"
    assert said["touching", "free"] == "no"
    pair = next(
        q for q in now_questions(planted(), 0) if q.topic == "left_right" and {"red", "blue"} <= set(q.text.split())
    )
    assert read(pair) == ("left" if pair.text.index("red") < pair.text.index("blue") else "right")
    after = {q.topic: q.answer for q in now_questions(planted(), 16) if q.form == "free" and q.topic == "touching"}
    assert after == {"touching": "yes"}
    asked = {q.topic for q in next_questions(planted())}
    assert asked == {"touching"}


def test_there_are_no_questions_that_an_image_leaves_open() -> None:
    clip = planted()
    clip.poses[-1, 5, 0] = 16.2  # on the edge between columns 2 and 3
    clip.poses[-1, 6, :2] = 42.5, 56.0  # neither touching nor clearly apart
    on_edge, near = now_questions(clip, 5), now_questions(clip, 6)
    assert not any(q.topic == "column" and "red ball" in q.text for q in on_edge)
    assert any(q.topic == "row" and "red ball" in q.text for q in on_edge)
    assert not any(q.topic == "touching" for q in near)
    with pytest.raises(ValueError, match="frame"):
        now_questions(clip, 17)


def test_balanced_questions_cannot_be_guessed(clips: list[Clip]) -> None:
    pool = [q for clip in clips for q in next_questions(clip) + now_questions(clip, 0) + now_questions(clip, 16)]
    kept = balanced(pool)
    assert kept
    assert kept == balanced(pool)
    groups = defaultdict(Counter)
    for question in kept:
        key = question.family, question.kind, question.topic, question.form, len(question.choices)
        groups[key][question.answer] += 1
    for key, counts in groups.items():
        assert max(counts.values()) / counts.total() <= 1 / len(counts) + 0.01 or max(counts.values()) == 1, key


def test_outcome_letters_and_yes_are_even_over_a_block() -> None:
    letters: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for index in range(72):
        for question in next_questions(make_clip("contact", "test", index)):
            if question.topic == "touching":
                (letters if question.form == "choice" else said)[question.answer] += 1
    assert set(letters.values()) == set(said.values()) == {36}
