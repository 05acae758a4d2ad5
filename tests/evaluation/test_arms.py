"""Each arm changes what its description names and nothing else; each rollout is computed once."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from theworld.evaluation.answering import ReplyInputs
from theworld.evaluation.arms import ARMS, Batch, Imagination, choose
from theworld.evaluation.tasks import Item

STEPS = 2
TOKEN_ARMS = [name for name, arm in ARMS.items() if arm.needs_world and name != "imagined-image"]


class Config:
    world_images = "first"
    world_config = SimpleNamespace(temporal_factor=4)

    def num_pixel_frames(self, num_world_steps: int) -> int:
        return 1 + 4 * num_world_steps


class Painter:
    """A fake model: its latents are the image's shade, plus 0.1 per world step."""

    def __init__(self) -> None:
        self.config = Config()
        self.imagined: list[tuple[int, int]] = []  # images and world steps of each call
        self.described: list[list[str]] = []

    def imagine(self, images: list[Any], num_world_steps: int, *, seed: int = 0, present: Any = None) -> torch.Tensor:
        assert (present is None) == (num_world_steps == 0), "what is known is not encoded again"
        self.imagined.append((len(images), num_world_steps))
        shades = torch.tensor([float(np.asarray(image)[0, 0, 0]) for image in images]).view(-1, 1, 1, 1, 1)
        ahead = 0.1 * torch.arange(1 + num_world_steps).view(1, 1, -1, 1, 1) + seed
        return (shades + ahead).expand(-1, 1, -1, 2, 2)

    def decode(self, latents: torch.Tensor, *, check_guardrail: bool = True) -> np.ndarray:
        assert not check_guardrail, "these frames are for the language model, without the guardrail"
        shades = latents[:, 0, -1, 0, 0].round().to(torch.uint8).numpy()
        return np.stack([np.full((1 + 4 * STEPS, 4, 4, 3), shade, dtype=np.uint8) for shade in shades])

    def encode(self, clip: list[np.ndarray]) -> torch.Tensor:
        return torch.full((1, 1, 1 + (len(clip) - 1) // 4, 2, 2), float(np.asarray(clip[-1])[0, 0, 0]))

    def world_tokens(self, latents: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
        return latents.mean(dim=(3, 4)).transpose(1, 2) + {"dummy": 1000.0, "random": 2000.0}[kind]

    def reply(self, images: list[Any], questions: list[str], *, inputs: ReplyInputs, max_new_tokens: int) -> list[Any]:
        assert (inputs.enable_world, inputs.lora) == (False, False), "the base Gemma model writes"
        self.described.append(questions)
        return [SimpleNamespace(text=f"it moves to {np.asarray(own[0])[0, 0, 0]}") for own in images]


def item(shade: int, now_form: str | None = "Where is it?") -> Item:
    frames = np.stack([np.full((4, 4, 3), min(255, shade + 100 * (moment > 0)), np.uint8) for moment in range(17)])
    return Item(
        f"{shade}", "drop", "topic", "free", frames[0], "Where will it be?", "left", frozenset(), now_form, frames
    )


@pytest.fixture
def batch() -> Batch:
    items = [item(10), item(20)]
    return Batch(
        images=[[one.image] for one in items],
        questions=[one.question for one in items],
        num_world_steps=STEPS,
        seed=0,
        items=items,
        world_images=[[one.image] for one in items],
        other_images=[[items[1].image], [items[0].image]],
        imagination=Imagination(Painter()),  # type: ignore[arg-type]
    )


def seen(batch: Batch, arm: str) -> torch.Tensor:
    """The shade of each latent frame, (n, T)."""
    changed = ARMS[arm].change(batch)
    assert changed.world_latents is not None
    return changed.world_latents[:, 0, :, 0, 0]


def test_latents_of_each_token_arm(batch: Batch) -> None:
    expected = {
        "fused": [[10.0, 10.1, 10.2], [20.0, 20.1, 20.2]],
        "fused-0": [[10.0], [20.0]],
        "shuffled": [[20.0, 20.1, 20.2], [10.0, 10.1, 10.2]],
        "wrong-future": [[10.0, 20.1, 20.2], [20.0, 10.1, 10.2]],
        "zero": [[0.0] * 3, [0.0] * 3],
        "dummy": [[0.0] * 3, [0.0] * 3],
        "random-projection": [[10.0, 10.1, 10.2], [20.0, 20.1, 20.2]],
        "oracle-future": [[110.0] * 3, [120.0] * 3],
        "futures-8": [[10.0, 10.1, 10.2], [20.0, 20.1, 20.2]],  # of each future, asked once per seed
        "averaged-8": [[13.5, 13.6, 13.7], [23.5, 23.6, 23.7]],  # the painter adds the seed: 0 to 7, 3.5 on average
        "gated": [[10.0, 10.1, 10.2], [20.0, 20.1, 20.2]],
    }
    assert set(expected) == {name for name in TOKEN_ARMS if ARMS[name].weights is None}
    for arm, shades in expected.items():
        torch.testing.assert_close(seen(batch, arm), torch.tensor(shades))


@pytest.mark.parametrize("arm", TOKEN_ARMS)
def test_token_arms_do_not_change_images_and_questions(batch: Batch, arm: str) -> None:
    changed = ARMS[arm].change(batch)
    assert changed.images is batch.images
    assert changed.questions is batch.questions
    assert changed.enable_world


def test_dummy_and_random_tokens_replace_those_of_the_projector(batch: Batch) -> None:
    dummy, random = (ARMS[arm].change(batch).world_tokens for arm in ("dummy", "random-projection"))
    assert dummy is not None
    assert random is not None
    assert dummy[:, 0, 0].tolist() == [1000.0, 1000.0]  # of zero latents, which do not depend on the image
    torch.testing.assert_close(random[:, 0, 0], torch.tensor([2010.0, 2020.0]))
    assert {ARMS[arm].change(batch).world_tokens for arm in ("fused", "zero", "shuffled", "oracle-future")} == {None}


def test_only_the_gemma_arm_disables_the_lora(batch: Batch) -> None:
    changed = ARMS["gemma"].change(batch)
    assert (changed.enable_world, changed.lora, changed.images) == (False, False, batch.images)
    assert all(ARMS[arm].change(batch).lora for arm in ("fused", "no-world", "verbal", "imagined-image"))


def test_verbal_reads_gemmas_description_of_each_image_which_is_generated_once(batch: Batch) -> None:
    for _ in range(2):
        changed = ARMS["verbal"].change(batch)
    assert changed.questions[0] == "Foreseen in words: it moves to 10\n\nWhere will it be?"
    assert (changed.enable_world, changed.images) == (False, batch.images)
    assert batch.imagination.model.described == [["Describe in one sentence what happens next."] * 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("arm", ["no-world", "matched-control", "direct"])
def test_arms_without_a_world_ask_the_same_question_about_the_same_image(batch: Batch, arm: str) -> None:
    changed = ARMS[arm].change(batch)
    assert (changed.enable_world, changed.world_latents) == (False, None)
    assert changed.images is batch.images
    assert changed.questions is batch.questions


@pytest.mark.parametrize(("arm", "shades"), [("imagined-image", [10, 20]), ("true-image", [110, 120])])
def test_image_arms_ask_the_now_form_about_the_last_frame(batch: Batch, arm: str, shades: list[int]) -> None:
    changed = ARMS[arm].change(batch)
    assert [[int(image[0, 0, 0]) for image in own] for own in changed.images] == [[shade] for shade in shades]
    assert changed.questions == ["Where is it?"] * 2
    assert (changed.enable_world, changed.world_latents) == (False, None)


def test_an_image_is_encoded_once_and_a_rollout_computed_once_per_seed_for_all_arms(batch: Batch) -> None:
    for arm in ("fused", "shuffled", "imagined-image", "random-projection"):
        ARMS[arm].change(batch)
    model = batch.imagination.model
    for arm in ("fused-0", "wrong-future", "zero", "dummy"):  # the present only
        ARMS[arm].change(batch)
    assert model.imagined == [(2, 0), (2, STEPS)]  # type: ignore[attr-defined]
    ARMS["fused"].change(replace(batch, seed=1))
    assert model.imagined == [(2, 0), (2, STEPS), (2, STEPS)]  # type: ignore[attr-defined]


def test_each_arm_is_charged_for_the_rollouts_it_needs_on_its_own(batch: Batch) -> None:
    imagination = batch.imagination
    charged = {}
    for arm in ("fused", "shuffled", "fused-0", "zero", "no-world"):
        imagination.start()
        ARMS[arm].change(batch)
        charged[arm] = imagination.num_rollouts()
        assert (imagination.rollout_seconds() > 0) == (arm != "no-world")
    assert charged == {"fused": 2, "shuffled": 2, "fused-0": 0, "zero": 0, "no-world": 0}


def test_the_same_image_twice_in_a_batch_is_imagined_once(batch: Batch) -> None:
    image = batch.world_images[0][0]
    twice = replace(batch, world_images=[[image], [image.copy()]])
    torch.testing.assert_close(seen(twice, "fused")[0], seen(twice, "fused")[1])
    assert batch.imagination.model.imagined == [(1, 0), (1, STEPS)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arm", "what", "shades"),
    [("imagined-image", "is imagined to happen next", 10), ("true-image", "happens next", 110)],
)
def test_without_a_now_form_the_future_follows_the_image(batch: Batch, arm: str, what: str, shades: int) -> None:
    items = [replace(one, now_form=None) for one in batch.items]
    changed = ARMS[arm].change(replace(batch, items=items))
    assert [int(np.asarray(image)[0, 0, 0]) for image in changed.images[0]] == [10, shades, shades]
    assert changed.questions[0] == (
        f"Picture 1 shows what is there now. Pictures 2 to 3 show what {what}, in order of time.\n\nWhere will it be?"
    )
    with pytest.raises(ValueError, match="evaluate them separately"):
        ARMS[arm].change(replace(batch, items=[items[0], batch.items[1]]))
    if arm == "true-image":
        with pytest.raises(ValueError, match="1 world step or more"):
            ARMS[arm].change(replace(batch, items=items, num_world_steps=0))


def test_a_missing_true_future_is_an_error(batch: Batch) -> None:
    items = [replace(one, frames=None) for one in batch.items]
    with pytest.raises(ValueError, match="10 has 0 true frames and this arm needs 9"):
        ARMS["oracle-future"].change(replace(batch, items=items))
    futures = [replace(one, frames=None, future=tuple(one.frames[1:])) for one in batch.items]
    torch.testing.assert_close(seen(replace(batch, items=futures), "oracle-future"), seen(batch, "oracle-future"))


def test_too_many_steps_for_the_true_frames_is_an_error(batch: Batch) -> None:
    with pytest.raises(ValueError, match="17 true frames and this arm needs 21"):
        ARMS["oracle-future"].change(replace(batch, num_world_steps=5))


def test_an_unknown_arm_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="no arm 'fusd'; did you mean 'fused'"):
        choose(["fused", "fusd"])
    assert choose(["all"]) == ARMS
    with pytest.raises(ValueError, match="No arm was named"):
        choose([])
