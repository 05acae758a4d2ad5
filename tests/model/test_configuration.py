"""Claims about what a model is: the moments it knows, and what they cost in tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.world_models.tiny import tiny_world_config
from theworld.model.configuration import TheWorldConfig
from theworld.storage.hub import SHIPPED_WEIGHTS


def config(**values: object) -> TheWorldConfig:
    base = {"world_config": tiny_world_config(), "world_image_size": 32}
    return TheWorldConfig(**{**base, **values})  # type: ignore[arg-type]


def test_a_image_is_as_large_as_the_world_model_takes() -> None:
    assert TheWorldConfig().world_image_size == 224, "of the published pair, 240 cells of 8 pixels a side"
    assert config(world_image_size=None).world_image_size == 64, "8 cells of 8 pixels a side"
    with pytest.raises(ValueError, match="imagines images of at most 64 pixels per side"):
        config(world_image_size=72)


@pytest.mark.parametrize(
    ("num_frames", "most", "past"),
    [(1, 0, 0), (1, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2), (17, 4, 4), (1000, 4, 4), (1000, 1, 1)],
)
def test_a_video_has_as_much_past_as_fits(num_frames: int, most: int, past: int) -> None:
    own = config(max_past_steps=most)
    assert own.past_steps_of(num_frames) == past
    assert own.num_pixel_frames(0, past) == 1 + 4 * past <= num_frames


@pytest.mark.parametrize(
    ("num_frames", "most", "says"),
    [(2, 4, "give 5 or more"), (4, 4, "too short to have a past"), (5, 0, "reads images only")],
)
def test_a_past_that_could_not_be_read_is_refused(num_frames: int, most: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(max_past_steps=most).past_steps_of(num_frames)


@pytest.mark.parametrize("values", [{}, {"spatial_merge": 2}, {"projector": "resampler", "resampler_tokens": 3}])
def test_a_step_costs_the_same_on_either_side_of_now(values: dict[str, object]) -> None:
    own = config(**values)
    frame = own.world_tokens_per_frame()
    assert own.world_token_count(2) == own.world_token_count(2, 0) == 3 * frame + 2
    assert own.world_token_count(2, 4) == own.world_token_count(6) == 7 * frame + 2
    assert own.num_pixel_frames(2, 4) == own.num_pixel_frames(6) == 25


def test_shipped_models_know_no_past() -> None:
    """Neither does a config that was written before there was one."""
    values = json.loads(Path(SHIPPED_WEIGHTS, "fused", "config.json").read_text())
    assert values.pop("max_past_steps") == 0
    assert TheWorldConfig.from_dict(values).max_past_steps == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_past_steps": -1}, "0 or more"),
        ({"max_past_steps": 1.5}, "must be an integer"),
        ({"max_past_step": 1}, "max_past_steps"),
    ],
)
def test_settings_of_the_past_are_checked(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**values)
