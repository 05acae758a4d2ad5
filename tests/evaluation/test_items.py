"""Another item's picture is never one's own, and is drawn by seed."""

import numpy as np
import pytest

from theworld.evaluation.items import Item, other_pictures, picture_key


def item(name: str, family: str, shade: int) -> Item:
    image = np.full((4, 4, 3), shade, dtype=np.uint8)
    return Item(name, family, "topic", "free", image, "Which?", "a", frozenset({"a", "b"}))


def test_everyone_gets_another_picture_of_the_same_family() -> None:
    items = [item(f"{family}{i}", family, 10 * i + 100 * (family == "q")) for family in "pq" for i in range(5)]
    others = other_pictures(items, seed=3)
    family_of = {picture_key(one.image): one.family for one in items}
    for one, other in zip(items, others, strict=True):
        assert picture_key(other) != picture_key(one.image)
        assert family_of[picture_key(other)] == one.family
    assert len({picture_key(other) for other in others}) == len(items)  # a derangement, not one picture for all


def test_two_questions_about_one_picture_get_the_same_other_picture() -> None:
    items = [item("a", "p", 1), item("b", "p", 1), item("c", "p", 2)]
    first, second, third = (picture_key(other) for other in other_pictures(items, seed=0))
    assert first == second == picture_key(items[2].image)
    assert third == picture_key(items[0].image)


def test_a_family_of_one_picture_borrows_from_the_others() -> None:
    items = [item("a", "p", 1), item("b", "q", 2), item("c", "q", 3)]
    assert picture_key(other_pictures(items, seed=0)[0]) != picture_key(items[0].image)


def test_the_seed_decides_which() -> None:
    items = [item(str(i), "p", i) for i in range(30)]
    keys = [[picture_key(other) for other in other_pictures(items, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_one_picture_has_no_other() -> None:
    with pytest.raises(ValueError, match="second picture"):
        other_pictures([item("a", "p", 1), item("b", "p", 1)], seed=0)
