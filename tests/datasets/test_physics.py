"""Scenes: deterministic, separate, balanced, at rest in the first frame, and clear in the last."""

from collections import Counter

import numpy as np
import pytest

from theworld.datasets.physics import FAMILIES, IMAGE_SIZE, NUM_FRAMES, SPLITS, Clip, make_clip, make_wild_frames
from theworld.datasets.physics.contact import APART, TOUCHING, gap
from theworld.datasets.physics.drop import bin_of_ball
from theworld.datasets.physics.scenes import make_scene, naive_guess, outcome_when_moved, outcomes, slot_of
from theworld.datasets.physics.simulation import Part, World, simulate
from theworld.datasets.physics.tower import state

QUICK = 5  # of the first hard scenes of drop, the one that is found in the fewest proposals


@pytest.fixture(scope="module")
def clips() -> dict[str, list[Clip]]:
    return {family: [make_clip(family, "train", index) for index in range(6)] for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_depends_on_family_split_and_index_only(family: str, clips: dict[str, list[Clip]]) -> None:
    again = make_clip(family, "train", 3)
    assert np.array_equal(again.frames, clips[family][3].frames)
    assert again.outcome == clips[family][3].outcome
    assert again.frames.shape == (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert again.frames.dtype == np.uint8


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_nothing(family: str, clips: dict[str, list[Clip]]) -> None:
    first = {split: make_clip(family, split, QUICK).frames[0].tobytes() for split in SPLITS}
    first["wild"] = make_wild_frames(family, 0)[0].tobytes()
    images = {clip.frames[0].tobytes() for clip in clips[family]} | set(first.values())
    assert len(images) == len(clips[family]) + len(first) - 1  # one of train is in both


@pytest.mark.parametrize("family", FAMILIES)
def test_outcomes_are_exactly_balanced_over_a_block(family: str) -> None:
    names = outcomes(family)
    counts = Counter(slot_of(family, "test", index) % len(names) for index in range(72, 144))
    assert set(counts.values()) == {72 // len(names)}
    parts, _, outcome = make_scene(family, "test", 40)
    assert outcome == names[slot_of(family, "test", 40) % len(names)]
    assert naive_guess(family, parts) in names


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_at_rest_in_the_first_and_last_frame(family: str, clips: dict[str, list[Clip]]) -> None:
    for clip in clips[family]:
        first, last = (np.abs(clip.poses[:, a, :2] - clip.poses[:, b, :2]).max() for a, b in ((1, 0), (-1, -2)))
        assert first <= 3.0  # one frame of free fall
        assert last <= 2.0
        moved = np.abs(np.diff(clip.poses[..., :2], axis=1)).max(axis=(0, 2))
        assert first <= moved.max() + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_pixel_does_not_change_the_answer(family: str, clips: dict[str, list[Clip]]) -> None:
    kept = [outcome_when_moved(family, clip.parts, dx) == clip.outcome for clip in clips[family] for dx in (-0.5, 0.5)]
    assert np.mean(kept) >= 11 / 12


def test_the_last_image_shows_the_answer(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["drop"]:
        ball = next(i for i, part in enumerate(clip.parts) if part.role == "ball")
        side = bin_of_ball(clip.parts, clip.poses[ball, -1].tolist())
        assert next(part.colour for part in clip.parts if part.role == side) == clip.outcome
    for clip in clips["contact"]:
        distance = gap(clip.parts, clip.poses, -1)
        assert distance < TOUCHING if clip.outcome == "yes" else distance >= APART
    for clip in clips["tower"]:
        assert state(clip.parts, clip.poses, -1) == clip.outcome
        assert state(clip.parts, clip.poses, 0) == "standing"


def test_hard_scenes_have_more_in_them() -> None:
    for family, kind, more in (("drop", "ramp", 4), ("tower", "block", 10)):
        assert sum(part.kind == kind for part in make_scene(family, "hard", QUICK)[0]) >= more


def test_a_planted_ball_falls_onto_the_box_below_it() -> None:
    ball = Part("ball", "red", "circle", (4.0,), 20.0, 10.0, density=1.0, role="red")
    box = Part("box", "blue", "box", (10.0, 10.0), 20.0, 55.0, role="blue")
    poses, touched = simulate([box, ball], World(1.5, 0.95, 0.5), ("red", "blue"))
    assert touched
    assert abs(poses[1, -1, 1] - 46.0) < 0.5
    _, touched = simulate([box, ball.moved(20)], World(1.5, 0.95, 0.5), ("red", "blue"))
    assert not touched


def test_errors_list_the_families_and_splits() -> None:
    with pytest.raises(ValueError, match="drop, contact, tower"):
        make_clip("slide", "train", 0)
    with pytest.raises(ValueError, match="hard"):
        make_clip("drop", "dev", 0)
    with pytest.raises(ValueError, match="negative"):
        make_clip("drop", "train", -1)
