"""Another item's picture is never one's own, and is drawn by seed; questions that cannot be scored are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from theworld.evaluation.items import Item, check_items, fingerprint, other_pictures, picture_key
from theworld.media.video import SpacedFrames, StridedFrames, Video


def item(name: str, family: str, shade: int) -> Item:
    image = np.full((4, 4, 3), shade, dtype=np.uint8)
    return Item(name, family, "topic", "free", image, "Which?", "a", frozenset({"a", "b"}))


def test_everyone_gets_another_picture_of_the_same_family() -> None:
    items = [item(f"{family}{i}", family, 10 * i + 100 * (family == "q")) for family in "pq" for i in range(5)]
    others = other_pictures(items, seed=3)
    family_of = {picture_key(one.image): one.family for one in items}
    for one, (other,) in zip(items, others, strict=True):
        assert picture_key(other) != picture_key(one.image)
        assert family_of[picture_key(other)] == one.family
    assert len({picture_key(other) for (other,) in others}) == len(items)  # a derangement, not one picture for all


def test_two_questions_about_one_picture_get_the_same_other_picture() -> None:
    items = [item("a", "p", 1), item("b", "p", 1), item("c", "p", 2)]
    first, second, third = (picture_key(other) for (other,) in other_pictures(items, seed=0))
    assert first == second == picture_key(items[2].image)
    assert third == picture_key(items[0].image)


def test_a_family_of_one_picture_borrows_from_the_others() -> None:
    items = [item("a", "p", 1), item("b", "q", 2), item("c", "q", 3)]
    assert picture_key(other_pictures(items, seed=0)[0][0]) != picture_key(items[0].image)


def test_the_seed_decides_which() -> None:
    items = [item(str(i), "p", i) for i in range(30)]
    keys = [[picture_key(other) for (other,) in other_pictures(items, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_one_picture_has_no_other() -> None:
    with pytest.raises(ValueError, match="second picture"):
        other_pictures([item("a", "p", 1), item("b", "p", 1)], seed=0)


def test_a_model_that_looks_ahead_from_each_picture_gets_another_for_each() -> None:
    pictures = [np.full((4, 4, 3), shade, dtype=np.uint8) for shade in range(4)]
    items = [
        replace(item("a", "p", 0), image=(pictures[0], pictures[1])),
        replace(item("b", "p", 0), image=pictures[2:]),
    ]
    assert [len(own) for own in other_pictures(items, seed=0)] == [1, 1]
    own = [[picture_key(picture) for picture in one.pictures()] for one in items]
    others = [[picture_key(picture) for picture in found] for found in other_pictures(items, seed=0, every=True)]
    assert [len(found) for found in others] == [2, 2]
    assert all(mine != other for a, b in zip(own, others, strict=True) for mine, other in zip(a, b, strict=True))


def test_of_a_video_the_last_frame_is_now(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame_{number:03d}.png")
    asked = replace(item("a", "p", 0), image=Video(tmp_path, SpacedFrames(4)), future=Video(tmp_path, StridedFrames()))
    assert [image.getpixel((0, 0))[0] for image in asked.pictures()] == [0, 6, 13, 19]
    assert [image.getpixel((0, 0))[0] for image in asked.looks_from(every=True)] == [19]
    assert len(asked.true_frames()) == 21


def test_questions_that_cannot_be_told_apart_or_scored_are_refused() -> None:
    asked = item("a", "p", 0)
    check_items([asked])
    with pytest.raises(ValueError, match="no question"):
        check_items([])
    with pytest.raises(ValueError, match="two questions have the id 'a'"):
        check_items([asked, asked])
    with pytest.raises(ValueError, match="'C' is none of its 2 choices"):
        check_items([replace(asked, choices=("left", "right"), answer="C")])


def test_the_fingerprint_follows_what_is_asked() -> None:
    asked = [item("a", "p", 0), item("b", "p", 1)]
    assert fingerprint(asked) == fingerprint([replace(one, image=None) for one in asked])
    others = [
        asked[:1],
        asked[::-1],
        [replace(asked[0], answer="b"), asked[1]],
        [replace(asked[0], question="?"), asked[1]],
    ]
    assert len({fingerprint(asked), *map(fingerprint, others)}) == 5
