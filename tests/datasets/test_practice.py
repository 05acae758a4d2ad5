"""Practice questions are about what their images show."""

from __future__ import annotations

import numpy as np

from theworld.datasets.physics import make_clip
from theworld.datasets.physics.practice import COLOUR_NAMES, cell_colours, cell_questions, scan_questions
from theworld.datasets.physics.rendering import BACKGROUND, PALETTE


def test_a_cell_has_the_colour_of_its_middle() -> None:
    image = np.empty((64, 64, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    image[8:16, 24:32] = PALETTE["red"]  # row 2, column 4
    image[40:48, 0:8] = (1, 200, 1)  # not in the palette: no question
    questions = cell_questions(image, "drop", 8, np.random.default_rng(0))
    assert ("What colour is at column 4, row 2?", "red") in {(question.text, question.answer) for question in questions}
    assert {question.answer for question in questions} == {"red", "empty"}
    assert not any("column 1, row 6" in question.text for question in questions)


def test_scans_list_the_colours_of_a_line_and_the_positions_of_objects() -> None:
    clip = make_clip("drop", "train", 0)
    questions = scan_questions(clip, 0, 100, np.random.default_rng(0))
    colours = cell_colours(clip.frames[0])
    answers = {question.text: question.answer for question in questions}
    for name, line in (("row 8", colours[7]), ("column 2", colours[:, 1])):
        words = answers[f"Which colours are in {name}?"].split()
        assert [COLOUR_NAMES.index(word) if word != "unsure" else -1 for word in words] == line.tolist()
    ball = next(part for part in clip.parts if part.kind == "ball" and part.colour == "yellow")
    x, y = (int(number) for number in answers["Where exactly is the yellow ball?"].split())
    assert (x, y) == (int(ball.x / 2), int(ball.y / 2))
