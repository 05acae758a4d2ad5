"""An item gets the image of another item, chosen by seed; questions that cannot be scored are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from theworld.evaluation.tasks import HIDDEN, Item, check_items, fingerprint, image_key, other_images
from theworld.media.video import SpacedFrames, StridedFrames, Video


def item(name: str, family: str, shade: int) -> Item:
    image = np.full((4, 4, 3), shade, dtype=np.uint8)
    return Item(name, family, "topic", "free", image, "Which?", "a", frozenset({"a", "b"}))


def test_every_item_gets_another_image_of_its_family() -> None:
    items = [item(f"{family}{i}", family, 10 * i + 100 * (family == "q")) for family in "pq" for i in range(5)]
    others = other_images(items, seed=3)
    family_of = {image_key(one.image): one.family for one in items}
    for one, (other,) in zip(items, others, strict=True):
        assert image_key(other) != image_key(one.image)
        assert family_of[image_key(other)] == one.family
    assert len({image_key(other) for (other,) in others}) == len(items)  # a derangement, not one image for all


def test_two_questions_about_one_image_get_the_same_other_image() -> None:
    items = [item("a", "p", 1), item("b", "p", 1), item("c", "p", 2)]
    first, second, third = (image_key(other) for (other,) in other_images(items, seed=0))
    assert first == second == image_key(items[2].image)
    assert third == image_key(items[0].image)


def test_a_family_of_one_image_borrows_from_the_others() -> None:
    items = [item("a", "p", 1), item("b", "q", 2), item("c", "q", 3)]
    assert image_key(other_images(items, seed=0)[0][0]) != image_key(items[0].image)


def test_the_seed_determines_the_other_images() -> None:
    items = [item(str(i), "p", i) for i in range(30)]
    keys = [[image_key(other) for (other,) in other_images(items, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match="second image"):
        other_images([item("a", "p", 1), item("b", "p", 1)], seed=0)


def test_a_model_that_starts_from_all_images_gets_another_for_each() -> None:
    images = [np.full((4, 4, 3), shade, dtype=np.uint8) for shade in range(4)]
    items = [
        replace(item("a", "p", 0), image=(images[0], images[1])),
        replace(item("b", "p", 0), image=images[2:]),
    ]
    assert [len(own) for own in other_images(items, seed=0)] == [1, 1]
    own = [[image_key(image) for image in one.images()] for one in items]
    others = [[image_key(image) for image in found] for found in other_images(items, seed=0, use_all=True)]
    assert [len(found) for found in others] == [2, 2]
    assert all(mine != other for a, b in zip(own, others, strict=True) for mine, other in zip(a, b, strict=True))


def test_of_a_video_the_last_frame_is_now(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame_{number:03d}.png")
    asked = replace(item("a", "p", 0), image=Video(tmp_path, SpacedFrames(4)), future=Video(tmp_path, StridedFrames()))
    assert [image.getpixel((0, 0))[0] for image in asked.images()] == [0, 6, 13, 19]
    assert [image.getpixel((0, 0))[0] for image in asked.world_images(use_all=True)] == [19]
    assert len(asked.true_frames()) == 21


def test_in_a_list_the_last_frame_of_each_video_is_its_present(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame_{number:03d}.png")
    video, still = Video(tmp_path, SpacedFrames(4)), Image.new("RGB", (4, 4), (99, 0, 0))
    for entries, first, every in (
        ((video,), [19], [19]),
        ((video, still), [19], [19, 99]),
        ((still, video), [99], [99, 19]),
    ):
        asked = replace(item("a", "p", 0), image=entries)
        for images in (None, asked.images()):
            assert [one.getpixel((0, 0))[0] for one in asked.world_images(False, images)] == first
            assert [one.getpixel((0, 0))[0] for one in asked.world_images(True, images)] == every


def test_duplicate_or_unscorable_questions_are_refused() -> None:
    asked = item("a", "p", 0)
    check_items([asked])
    with pytest.raises(ValueError, match="has no questions"):
        check_items([])
    with pytest.raises(ValueError, match="Two questions have the id 'a'"):
        check_items([asked, asked])
    with pytest.raises(ValueError, match="'C' is not one of its 2 choices"):
        check_items([replace(asked, choices=("left", "right"), answer="C")])


def test_the_fingerprint_depends_on_the_questions() -> None:
    asked = [item("a", "p", 0), item("b", "p", 1)]
    assert fingerprint(asked) == fingerprint([replace(one, image=None) for one in asked])
    others = [
        asked[:1],
        asked[::-1],
        [replace(asked[0], answer="b"), asked[1]],
        [replace(asked[0], question="?"), asked[1]],
    ]
    assert len({fingerprint(asked), *map(fingerprint, others)}) == 5


def test_a_missing_answer_is_named_before_anything_is_asked() -> None:
    items = [item("a", "p", 0), replace(item("b", "p", 1), answer=HIDDEN), item("c", "p", 2)]
    with pytest.raises(ValueError, match=r"^1 question of 3 without an answer \(b\), and the others have one; add"):
        check_items(items)
    check_items([replace(one, answer=HIDDEN) for one in items])
