"""Which choice an answer commits to: a table of hard cases, reviewed by hand."""

from __future__ import annotations

import pytest

from theworld.evaluation.scoring import read_choice

FOUR = ["", "", "", ""]
POINTS = ["Point A", "Point B", "Point C", "Point D"]
IMAGES = ["the second image", "the third image"]
YES_NO = ["yes", "no"]
NO_YES = ["no", "yes"]
NUMBERS = ["3", "2", "12", "0"]
DEPTH = ["A is closer", "B is closer"]
SIDES = ["left", "right"]
SAME = ["A is darker", "B is darker", "About the same"]

TABLE = [
    # a letter and nothing else
    ("B", FOUR, "B"),
    ("b", FOUR, "B"),
    ("(B)", FOUR, "B"),
    ("B.", FOUR, "B"),
    ("B)", FOUR, "B"),
    ("[B]", FOUR, "B"),
    ("**B**", FOUR, "B"),
    ("**(B)**.", FOUR, "B"),
    ("\u00a0(B)\n", FOUR, "B"),
    ("（B）", FOUR, "B"),
    ("<s> B</s>", FOUR, "B"),
    ("B<end_of_turn>", FOUR, "B"),
    ("$\\boxed{B}$", FOUR, "B"),
    ("\\boxed{\\text{B}}", FOUR, "B"),
    ("<answer>B</answer>", FOUR, "B"),
    ("<think>It could be A. Or C.</think>B", FOUR, "B"),
    ("Option B", FOUR, "B"),
    ("Answer: B", FOUR, "B"),
    ("E", FOUR, None),
    ("C", IMAGES, None),
    # a letter and its words
    ("(B) the third image", IMAGES, "B"),
    ("B. the third image", IMAGES, "B"),
    ("B: 2", NUMBERS, "B"),
    ("(A) The second image, since its palette is the same.", IMAGES, "A"),
    ("(A) A is closer", DEPTH, "A"),
    ("(B) Point B is not hidden by the roof.", POINTS, "B"),
    # words alone
    ("the third image", IMAGES, "B"),
    ("The third image.", IMAGES, "B"),
    ("A is closer", DEPTH, "A"),
    ("yes", NO_YES, "B"),
    ("Yes, it does.", YES_NO, "A"),
    ("No.", YES_NO, "B"),
    ("There are 2 frogs.", NUMBERS, "B"),
    ("There are 12 frogs.", NUMBERS, "C"),
    ("0.5", NUMBERS, None),
    ("The camera is moving right when shooting the video.", SIDES, "B"),
    ("About the same", SAME, "C"),
    ("The answer is the second image.", IMAGES, "A"),
    ("the second image", FOUR, None),
    ("vitamin C", ["vitamin B", "vitamin C", "", ""], "B"),
    ("B", ["B", "A", "", ""], "B"),  # a lone letter is a letter
    ("the red ball", ["the red ball", "the red ball"], None),  # words that name two choices name none
    # a sentence that commits
    ("The answer is (B).", FOUR, "B"),
    ("The correct answer is B because the roofs match.", FOUR, "B"),
    ("The correct option is: **C**", FOUR, "C"),
    ("I would go with option D.", FOUR, "D"),
    ("My final answer: (C) Point C", POINTS, "C"),
    ("Therefore, the corresponding point is B.", FOUR, "B"),
    ("It must be C.", FOUR, "C"),
    ("Point D matches best.", POINTS, "D"),
    ("(C) is the correct choice.", FOUR, "C"),
    ("So, the correct choice is:\n\n**(A) the second image**", IMAGES, "A"),
    ("The answer is option b.", FOUR, "B"),
    ("A is correct.", FOUR, "A"),
    ("Sure! Looking at the roof, I choose B", FOUR, "B"),
    # weighing one and settling on another
    ("It could be A, since both are red. But the shape differs, so the answer is C.", FOUR, "C"),
    ("At first I thought the answer is A. Wait, actually it's B.", FOUR, "B"),
    ("Option A is wrong. Option B is wrong. Option D is wrong. So C.", FOUR, "C"),
    ("(A) is not correct, (B) is.", FOUR, None),  # no verb of its own that says so
    ("The answer is not A but B.", FOUR, "B"),
    ("I can rule out A, B and D, which leaves C.", FOUR, "C"),
    ("Point A is on the ear, Point B is on the tail.\nThe reference is on the tail.\nAnswer: (B)", POINTS, "B"),
    ("I am not certain, but if I had to choose, I would pick (D).", FOUR, "D"),
    ("I cannot see the first image well. However, the best choice is (B).", FOUR, "B"),
    ("Unlike A, the answer is B.", FOUR, "B"),
    ("B is a better match than A.", FOUR, "B"),
    ("The third image (B) is more similar than the second image (A), so I select (B).", IMAGES, "B"),
    # several, none, refusals
    ("A or B", FOUR, None),
    ("The answer is A or B.", FOUR, None),
    ("Both (A) and (C) are correct.", FOUR, None),
    ("The answer is (A) and (D).", FOUR, None),
    ("(A) (B) (C) (D)", FOUR, None),
    ("(A) Point A\n(B) Point B\n(C) Point C\n(D) Point D", POINTS, None),
    ("Please select one of the following:\n(A) yes\n(B) no", YES_NO, None),
    ("It is impossible to select either (A) the second image or (B) the third image.", IMAGES, None),
    ("I'm sorry, I cannot determine that.", FOUR, None),
    ("Without more information it is hard to say; it could be B.", FOUR, None),
    ("None of the above.", FOUR, None),
    ("I select option (C) none of the above.", FOUR, None),
    ("The answer is (C) none of these.", ["a cat", "a dog", "none of these"], "C"),
    ("If the ball is heavy, the answer is A. If it is light, the answer is B.", FOUR, None),
    ("The answer is (E).", FOUR, None),
    ("", FOUR, None),
    ("   \n", FOUR, None),
    ("......", FOUR, None),
    ("A man stands near a car.", FOUR, None),
    ("I think a cat would do that.", FOUR, None),
    ("In this image, a dog and a cat play.", FOUR, None),
    ("What a nice picture! Could you show me the choices?", FOUR, None),
    ("The U.S. flag is on Mr. D. Smith's desk.", FOUR, None),
    ("B", [], None),
    # next to characters that are written without spaces
    ("答案是B", FOUR, "B"),
    ("选B。", FOUR, "B"),
    ("答案是B选项", FOUR, "B"),
    ("答案：A", FOUR, "A"),
    ("答案是A，因为屋顶一样。", FOUR, "A"),
    ("A项正确。", FOUR, "A"),
    ("【A】", FOUR, "A"),
    ("正解はBです。", FOUR, "B"),
    ("選択肢Cが正しい。", FOUR, "C"),
    ("정답은 B입니다.", FOUR, "B"),
    ("答案不是A。", FOUR, None),
    ("不是A，而是B。", FOUR, "B"),
    ("A还是B？", FOUR, None),
    ("无法确定，可能是B。", FOUR, None),
    ("Bではありません。", FOUR, None),
    ("정답은 A가 아니라 B입니다.", FOUR, None),
    # letters of other alphabets that look like ours, and words of theirs that are one letter
    ("В", FOUR, "B"),
    ("(В)", FOUR, "B"),
    ("Правильный ответ — В.", FOUR, "B"),
    ("The answer is В because it fits.", FOUR, "B"),
    ("Ответ не В.", FOUR, None),
    ("В этом изображении кошка.", FOUR, None),
    ("Die Antwort ist nicht B.", FOUR, None),
    # tables of verdicts
    ("A: no. B: yes. C: no. D: no.", FOUR, "B"),
    ("A: no\nB: yes\nC: no\nD: no", FOUR, "B"),
    ("A: no, B: yes, C: no, D: no", FOUR, "B"),
    ("A ✗ B ✓ C ✗ D ✗", FOUR, "B"),
    ("A - wrong; B - correct; C - wrong; D - wrong", FOUR, "B"),
    ("A: no. B: no. C: yes. D: yes. So the answer is D.", FOUR, "D"),
    ("The answer is B. A: no. C: no. D: no.", FOUR, "B"),
    ("A: no. C: no. D: no.", FOUR, None),
    ("A: yes. B: yes. C: no.", FOUR, None),
    ("A: yes. B: no.", YES_NO, None),  # a list of the choices
    ("A: no", YES_NO, None),  # the letter of one choice and the words of the other
    ("A. the third image", IMAGES, None),
    # where "no" answers nothing
    ("No doubt about it: yes.", YES_NO, "A"),
    ("Without a doubt, yes.", NO_YES, "B"),
    ("No question: no.", YES_NO, "B"),
    ("I have no idea.", YES_NO, None),
    # cut off inside its reasoning
    ("<think>It could be A, because the roof is red", FOUR, None),
    ("I consider A.</think>B", FOUR, "B"),
    ("<think>A</think>The answer is B.", FOUR, "B"),
    ("Let me compare the options. Option A shows a red ball which is similar in", FOUR, None),
    ("At first it seems that the answer is A. Wait, the second picture shows a", FOUR, None),
    ("I looked twice. So the answer is A but in the", FOUR, None),
    ("A: the ball is red, which would fit. B: the ball is", FOUR, None),
    ("The answer is B. This is because the roof of the house", FOUR, "B"),
    ("B. The reason: it is red. A: too dark.", FOUR, "B"),
]


@pytest.mark.parametrize(("text", "choices", "letter"), TABLE)
def test_an_answer_is_read_as_a_person_reads_it(text: str, choices: list[str], letter: str | None) -> None:
    assert read_choice(text, choices) == letter


def test_the_table_is_long_enough() -> None:
    assert len({(text, tuple(choices)) for text, choices, _ in TABLE}) >= 60
