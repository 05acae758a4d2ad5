"""Each arm changes what it says it changes and nothing else; rollouts are made once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from theworld.evaluation.arms import ARMS, Batch, Imagination, choose
from theworld.evaluation.items import Item

STEPS = 2


class Config:
    def num_pixel_frames(self, num_world_steps: int) -> int:
        return 1 + 4 * num_world_steps


class Painter:
    """Stands in for a model: its latents are the picture's shade, plus 0.1 a step into the future."""

    def __init__(self) -> None:
        self.config = Config()
        self.imagined: list[int] = []

    def imagine(self, images: list[Any], num_world_steps: int, *, seed: int = 0) -> torch.Tensor:
        self.imagined.append(len(images))
        shades = torch.tensor([float(image[0, 0, 0]) for image in images]).view(-1, 1, 1, 1, 1)
        ahead = 0.1 * torch.arange(1 + num_world_steps).view(1, 1, -1, 1, 1) + seed
        return (shades + ahead).expand(-1, 1, -1, 2, 2)

    def decode(self, latents: torch.Tensor, *, for_people: bool = True) -> np.ndarray:
        assert not for_people, "the language model looks at them, and no guardrail stands between"
        shades = latents[:, 0, -1, 0, 0].round().to(torch.uint8).numpy()
        return np.stack([np.full((1 + 4 * STEPS, 4, 4, 3), shade, dtype=np.uint8) for shade in shades])

    def encode(self, clip: list[np.ndarray]) -> torch.Tensor:
        return torch.full((1, 1, 1 + (len(clip) - 1) // 4, 2, 2), float(clip[-1][0, 0, 0]))


def item(shade: int, now_form: str | None = "Where is it?") -> Item:
    frames = np.stack([np.full((4, 4, 3), min(255, shade + 100 * (moment > 0)), np.uint8) for moment in range(17)])
    return Item(
        f"{shade}", "drop", "topic", "free", frames[0], "Where will it be?", "left", frozenset(), now_form, frames
    )


@pytest.fixture
def batch() -> Batch:
    items = [item(10), item(20)]
    return Batch(
        images=[one.image for one in items],
        questions=[one.question for one in items],
        num_world_steps=STEPS,
        seed=0,
        enable_world=True,
        world_latents=None,
        records=items,
        others=[items[1].image, items[0].image],
        imagination=Imagination(Painter()),  # type: ignore[arg-type]
    )


def seen(batch: Batch, arm: str) -> torch.Tensor:
    """The shade each latent frame shows, (n, T)."""
    changed = ARMS[arm].change(batch)
    assert changed.world_latents is not None
    return changed.world_latents[:, 0, :, 0, 0]


def test_what_each_token_arm_reads(batch: Batch) -> None:
    expected = {
        "fused": [[10.0, 10.1, 10.2], [20.0, 20.1, 20.2]],
        "fused-0": [[10.0], [20.0]],
        "shuffled": [[20.0, 20.1, 20.2], [10.0, 10.1, 10.2]],
        "wrong-future": [[10.0, 20.1, 20.2], [20.0, 10.1, 10.2]],
        "zero": [[0.0] * 3, [0.0] * 3],
        "oracle-future": [[110.0] * 3, [120.0] * 3],
    }
    assert set(expected) == {name for name, arm in ARMS.items() if arm.reads_tokens}
    for arm, shades in expected.items():
        torch.testing.assert_close(seen(batch, arm), torch.tensor(shades))


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.reads_tokens])
def test_token_arms_leave_pictures_and_questions_alone(batch: Batch, arm: str) -> None:
    changed = ARMS[arm].change(batch)
    assert changed.images is batch.images
    assert changed.questions is batch.questions
    assert changed.enable_world


@pytest.mark.parametrize("arm", ["no-world", "matched-control", "direct"])
def test_arms_without_a_world_ask_the_same_of_the_same_picture(batch: Batch, arm: str) -> None:
    changed = ARMS[arm].change(batch)
    assert (changed.enable_world, changed.world_latents) == (False, None)
    assert changed.images is batch.images
    assert changed.questions is batch.questions


@pytest.mark.parametrize(("arm", "shades"), [("imagined-image", [10, 20]), ("true-image", [110, 120])])
def test_picture_arms_ask_of_the_last_frame_as_it_is(batch: Batch, arm: str, shades: list[int]) -> None:
    changed = ARMS[arm].change(batch)
    assert [int(image[0, 0, 0]) for image in changed.images] == shades
    assert changed.questions == ["Where is it?"] * 2
    assert (changed.enable_world, changed.world_latents) == (False, None)


def test_a_rollout_is_made_once_for_all_arms_and_once_a_seed(batch: Batch) -> None:
    for arm in ("fused", "shuffled", "wrong-future", "imagined-image", "zero"):
        ARMS[arm].change(batch)
    model = batch.imagination.model
    assert model.imagined == [2]  # type: ignore[attr-defined]
    ARMS["fused"].change(replace(batch, seed=1))
    ARMS["fused-0"].change(batch)
    assert model.imagined == [2, 2, 2]  # type: ignore[attr-defined]


def test_the_same_picture_twice_in_a_batch_is_imagined_once(batch: Batch) -> None:
    twice = replace(batch, images=[batch.images[0], batch.images[0].copy()])
    torch.testing.assert_close(seen(twice, "fused")[0], seen(twice, "fused")[1])
    assert batch.imagination.model.imagined == [1]  # type: ignore[attr-defined]


def test_a_question_without_a_now_form_cannot_be_asked_of_a_picture(batch: Batch) -> None:
    with pytest.raises(ValueError, match="as a state"):
        ARMS["imagined-image"].change(replace(batch, records=[item(10, None), item(20)]))


def test_too_many_steps_for_the_true_frames_is_an_error(batch: Batch) -> None:
    with pytest.raises(ValueError, match="17 true frames and this arm needs 21"):
        ARMS["oracle-future"].change(replace(batch, num_world_steps=5))


def test_an_unknown_arm_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no arm 'fusd'; choose among fused, fused-0"):
        choose(["fused", "fusd"])
    with pytest.raises(ValueError, match="at least one"):
        choose([])
