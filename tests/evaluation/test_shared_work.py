"""What the arms of an evaluation share is computed once, counted on a tiny real model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from theworld.evaluation import runner
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.arms import choose
from theworld.evaluation.tasks import Item
from theworld.inference.pipeline import TheWorld

STEPS = 2


def items(count: int) -> list[Item]:
    """Questions about one image each; the last one has the image of the first."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(count - 1)]
    images.append(images[0])
    question = "Which bin will the ball land in?"
    legal = frozenset({"left", "right"})
    return [
        Item(str(number), "drop", "bin", "free", image, question + " left" * (number % 2), "left", legal)
        for number, image in enumerate(images)
    ]


def counted(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the model computes: images or prompts, and calls of the language model's layers."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str, size: Callable[..., int]) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counts[what] += size(*arguments, **named)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    world: Any = model.model.world
    count(model.model, "image_features", "images seen by Gemma", lambda pixels: len(pixels))
    count(world, "encode", "images encoded", lambda frames: len(frames))
    count(world, "rollout", "rollouts", lambda latents, *_, **__: len(latents))
    count(model.processor, "image_processor", "images resized for Gemma", lambda images, **_: len(images))
    count(model.processor, "token_ids", "prompts encoded", lambda texts, **_: len(texts))
    count(model.model, "generate", "batches answered", lambda **_: 1)
    model.model.language_model.register_forward_pre_hook(lambda *_: counts.update({"passes": 1}))
    return counts


def test_images_are_read_and_imagined_once_for_all_arms(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TheWorld.from_pretrained(family / "fused", device="cpu")
    counts = counted(model, monkeypatch)
    arms = choose(["fused", "fused-0", "shuffled", "no-world"])
    asked = items(5)
    answers = runner.run_arms(
        asked, arms, lambda _: ModelAnswerer(model), num_world_steps=STEPS, batch_size=3, max_new_tokens=2
    )
    assert all(len(own) == 5 for own in answers.values())
    passes = counts.pop("passes")
    assert counts == {
        "images seen by Gemma": 4,
        "images resized for Gemma": 4,
        "images encoded": 4,
        "rollouts": 4,
        "prompts encoded": 4 * 5,
        "batches answered": 4 * 2,  # of three questions and of two
    }
    assert passes <= 4 * 2 * 2  # one pass reads the prompts and chooses the first token; the options cost nothing
    present = {name: own[0].rollout_seconds for name, own in answers.items()}
    assert present["fused"] > present["fused-0"] > 0 == present["no-world"]  # as if each arm had run alone
    assert [own[0].rollouts for own in answers.values()] == [1.0, 0.0, 1.0, 0.0]


def test_prompts_without_pixels_are_those_with_them(family: Path) -> None:
    model = ModelAnswerer(TheWorld.from_pretrained(family / "fused", device="cpu"))
    asked = items(3)
    images = [item.images() for item in asked]
    questions = [item.question for item in asked]
    latents = model.imagine([entry[0] for entry in images], 1)
    inputs = ReplyInputs(num_world_steps=1, world_latents=latents)
    known = replace(inputs, image_features=model.image_features([entry[0] for entry in images]))
    for given in (inputs, replace(inputs, world_latents=None, enable_world=False)):
        for answers in (None, ["left", "right now", "left"]):
            whole = model._features(images, questions, given, answers)
            short = model._features(images, questions, replace(given, image_features=known.image_features), answers)
            assert set(whole) - {"pixel_values"} == set(short) - {"image_features"}
            for name in set(whole) - {"pixel_values", "num_past_steps"}:
                assert torch.equal(whole[name], short[name]), name
    assert model.reply(images, questions, None, 4, inputs) == model.reply(images, questions, None, 4, known)


def test_a_future_from_known_latents_is_the_same(family: Path) -> None:
    model = ModelAnswerer(TheWorld.from_pretrained(family / "fused", device="cpu"))
    images = [item.images()[0] for item in items(3)]
    whole = model.imagine(images, STEPS, seed=3)
    present = model.imagine(images, 0)
    assert torch.equal(whole[:, :, :1], present)
    assert torch.equal(model.imagine(images, STEPS, seed=3, present=present), whole)
