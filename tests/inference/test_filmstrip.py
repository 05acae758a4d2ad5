"""Claims about frames shown as pictures: their order, and that the words call each by its number."""

import pytest

from theworld.inference.filmstrip import filmstrip

CASES = {
    "one picture": (
        (["now"], [[]], [["+1", "+2"]]),
        ["now", "+1", "+2"],
        "Picture 1 shows what is there now. Pictures 2 to 3 show what is imagined to happen next, in order of time.",
    ),
    "a video": (
        (["now"], [["-2", "-1"]], [["+1"]]),
        ["-2", "-1", "now", "+1"],
        "Pictures 1 to 2 show what was there before, in order of time. Picture 3 shows what is there now. "
        "Picture 4 shows what is imagined to happen next, in order of time.",
    ),
    "a video, nothing imagined": (
        (["now"], [["-1"]], [[]]),
        ["-1", "now"],
        "Picture 1 shows what was there before, in order of time. Picture 2 shows what is there now.",
    ),
    "two pictures, the first looked ahead from": (
        (["a", "b"], [[]], [["a+1", "a+2"]]),
        ["a", "b", "a+1", "a+2"],
        "Pictures 1 to 2 show what is there now. "
        "Pictures 3 to 4 show what is imagined to happen after picture 1, in order of time.",
    ),
    "two videos": (
        (["a", "b"], [["a-1"], ["b-1"]], [["a+1"], ["b+1"]]),
        ["a", "b", "a-1", "a+1", "b-1", "b+1"],
        "Pictures 1 to 2 show what is there now. "
        "Picture 3 shows what was there before picture 1, in order of time. "
        "Picture 4 shows what is imagined to happen after picture 1, in order of time. "
        "Picture 5 shows what was there before picture 2, in order of time. "
        "Picture 6 shows what is imagined to happen after picture 2, in order of time.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_strip_and_its_words(name: str) -> None:
    (now, before, after), pictures, words = CASES[name]
    assert filmstrip(now, before, after, "Which bin?") == (pictures, f"{words}\n\nWhich bin?")
