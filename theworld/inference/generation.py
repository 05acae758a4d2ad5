"""Inputs of generation: the future is imagined and passed on as world tokens or as further images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import BatchFeature

from theworld.inference.filmstrip import filmstrips
from theworld.inference.options import RolloutOptions
from theworld.inference.prompting import PromptBuilder
from theworld.inference.world_runner import WorldRunner
from theworld.media.inputs import ImageOrVideo, LoadedImages
from theworld.model.call_plan import UNTRAINED, CallPlan
from theworld.model.processing import prompts_each

if TYPE_CHECKING:
    from theworld.inference.pipeline import TheWorld

FRAMES_INSTEAD = (
    f"{UNTRAINED} `generate` therefore shows imagined frames, or the input image alone if num_world_steps is 0; train "
    "the projector, load a trained model, or pass mode='tokens' to override."
)
SEVERAL_IMAGES = "nano was trained on questions about one image; its answers about several images are meaningless."
WITHOUT_IMAGE = (
    "No image was given, so the language model answers from the text alone, without the world model; pass "
    "enable_world=False if this is intended."
)


def prepare(
    model: TheWorld,
    images: LoadedImages,
    questions: list[Any],
    answers: Sequence[str] | None,
    rollout: RolloutOptions,
    ids_only: bool = False,
) -> BatchFeature:
    """Plans how the world model is used and prepares the inputs; see `TheWorld.prepare_generation`."""
    if model.is_shipped and any(len(row) > 1 for row in images):
        model.warn_once(SEVERAL_IMAGES)
    if rollout.enable_world is not False and not all(images):
        model.warn_once(WITHOUT_IMAGE)
    if rollout.enable_world is False or not any(images):
        if rollout.world_latents is not None:
            raise ValueError("world_latents were given, but the world model is disabled or there is no image.")
        return model.prompts.inputs(images, questions, answers, rollout, ids_only).to(model.device)
    chosen = model.processor.with_world(images, rollout.world_images)
    past = model.processor.num_past_steps([each for row in chosen for each in row])
    steps = rollout.num_world_steps
    if rollout.world_latents is not None:
        model.config.check_world_latents(rollout.world_latents, sum(map(len, chosen)))
        steps = rollout.world_latents.shape[2] - 1 - past
    plan = model.plan(rollout.mode, steps, past)
    if plan.mode == "off" and past:
        raise ValueError("This model has no world model, so it cannot read the past of a video; pass an image.")
    if not model.projector_is_trained and (plan.mode == "tokens" or rollout.mode is None):
        model.warn_once(FRAMES_INSTEAD)
    rollout = replace(rollout, num_world_steps=plan.num_world_steps)
    return generation_inputs(model.prompts, model.runner, images, questions, answers, rollout, plan, ids_only)


def generation_inputs(
    prompts: PromptBuilder,
    runner: WorldRunner,
    images: LoadedImages,
    questions: list[str],
    answers: Sequence[str] | None,
    rollout: RolloutOptions,
    plan: CallPlan,
    ids_only: bool = False,
) -> BatchFeature:
    """Model inputs that hold `world_latents`, or in mode `frames` imagined frames as images, instead of frames.

    Returns:
        Gemma's inputs (B, L) on the runner's device; in mode `tokens` also `world_latents` (n, C, P + 1 + N, h, w)
        float32 and `num_past_steps`, the number P.
    """
    if plan.mode == "off" and any(prompts_each(rollout.world_prompt, None)):
        raise ValueError("world_prompt has no effect without imagined steps; set num_world_steps to 1 or more.")
    if rollout.world_latents is not None and rollout.world_prompt is not None:
        raise ValueError("world_latents and world_prompt were both given; a prompt has no effect on given latents.")
    if plan.mode == "frames":
        images, questions = with_frames(runner, images, questions, rollout)
    if plan.mode != "tokens":
        rollout = replace(rollout, enable_world=False, world_latents=None, world_prompt=None)
    inputs = prompts.inputs(images, questions, answers, rollout, ids_only)
    if plan.mode == "tokens":
        names = ("world_frames", "world_seeds", "num_world_steps", "world_prompt")
        seen: dict[str, Any] = {name: inputs.pop(name) for name in names if name in inputs}
        latents = rollout.world_latents
        if latents is None:
            latents = runner.imagine_from(seen, plan.num_world_steps, rollout.progress)
        past = latents.shape[2] - 1 - plan.num_world_steps
        inputs.update({"world_latents": latents, "num_past_steps": past})
    return inputs.to(runner.device)


def with_frames(
    runner: WorldRunner, images: LoadedImages, questions: list[str], rollout: RolloutOptions
) -> tuple[LoadedImages, list[str]]:
    """Each question's images with the last frame of each past and imagined world step, introduced in words."""
    if not all(images):
        raise ValueError("Mode 'frames' needs an image for each question.")
    processor, steps = runner.processor, rollout.num_world_steps
    chosen = processor.with_world(images, rollout.world_images)
    every: list[ImageOrVideo] = [image for row in chosen for image in row]
    futures: list[list[Image.Image]] = [[] for _ in every]
    if steps:
        latents = rollout.world_latents
        if latents is None:
            texts = prompts_each(rollout.world_prompt, len(chosen))
            steering = [text for row, text in zip(chosen, texts, strict=True) for _ in row]
            latents = runner.imagine(every, steps, rollout.seed, steering, rollout.progress)
        factor = processor.config.world_config.temporal_factor
        first = factor * (processor.num_past_steps(every) + 1)  # where the first imagined world step ends
        decoded = runner.decode(latents, check_guardrail=False)[:, first::factor]  # (n, N, H, W, 3)
        futures = [[Image.fromarray(frame) for frame in frames] for frames in decoded]
    return filmstrips(processor, images, chosen, futures, questions)
