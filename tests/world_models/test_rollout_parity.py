"""Our rollout against diffusers' own `Cosmos2VideoToWorldPipeline` on the same weights, pixels, prompts and noise.

Two things are done to the pipeline so that it can be compared. It refuses `safety_checker=None`; it gets an object that
does nothing, and with prompt embeddings in and latents out there is nothing to check. It samples the conditioning
latent; its `retrieve_latents` is replaced by one that takes the mean, as ours does.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from tests.world_models.tiny import TINY_SIZE, tiny_frames, tiny_world
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.cosmos_sampler import rollout_noise

STEPS = 2  # N
# On values of order 1. Measured: 0 without guidance; 3e-6 with it, since a batch of two rounds otherwise than two
# passes. A single step from sigma 80 subtracts numbers of order 240, which float32 holds to 1.5e-5: measured 3e-5.
TOLERANCE = 1e-5
ONE_STEP_TOLERANCE = 1e-4


class NothingToCheck:
    """Stands where the guardrail would; the pipeline moves it about."""

    def to(self, device: torch.device | str) -> None:
        pass


@pytest.fixture
def pipeline_module(monkeypatch: pytest.MonkeyPatch) -> object:
    from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world as module

    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, generator=None: encoded.latent_dist.mean)
    return module


def picture(seed: int) -> Image.Image:
    frame = tiny_frames(seed=seed)[0, :, 0].permute(1, 2, 0)
    return Image.fromarray(((frame + 1) * 127.5).round().to(torch.uint8).numpy())


def to_frames(pictures: list[Image.Image]) -> Tensor:
    """(1, 3, F, H, W), F the number of pictures."""
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures], dim=1)
    return pixels[None].float() / 127.5 - 1


def run_pipeline(
    module: object, world: CosmosPredict2, pictures: list[Image.Image], noise: Tensor, steps: int, guidance: float
) -> Tensor:
    pipeline = module.Cosmos2VideoToWorldPipeline(  # type: ignore[attr-defined]
        text_encoder=None,
        tokenizer=None,
        transformer=world.transformer,
        vae=world.vae,
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=NothingToCheck(),
    )
    pipeline.set_progress_bar_config(disable=True)
    assert world.prompt_embeds is not None
    assert world.negative_prompt_embeds is not None
    return pipeline(
        **({"image": pictures[0]} if len(pictures) == 1 else {"video": pictures}),
        height=TINY_SIZE,
        width=TINY_SIZE,
        num_frames=1 + 4 * (noise.shape[2] - 1),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        prompt_embeds=world.prompt_embeds[None],
        negative_prompt_embeds=world.negative_prompt_embeds[None],
        output_type="latent",
    ).frames


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' NumPy use
@pytest.mark.parametrize(
    ("num_pictures", "steps", "guidance", "dtype"),
    [
        pytest.param(1, 5, 1.0, torch.float32, id="no guidance"),
        pytest.param(1, 5, 3.0, torch.float32, id="guidance"),
        pytest.param(1, 2, 3.0, torch.float32, id="two steps"),
        pytest.param(5, 4, 3.0, torch.float32, id="a video so far"),
        pytest.param(1, 5, 1.0, torch.bfloat16, id="bfloat16 weights"),
    ],
)
def test_rollout_is_the_pipelines(
    pipeline_module: object, num_pictures: int, steps: int, guidance: float, dtype: torch.dtype
) -> None:
    world = tiny_world().to(dtype)
    pictures = [picture(seed) for seed in range(num_pictures)]
    latents = world.encode(to_frames(pictures))
    given = latents.shape[2]
    # the pipeline draws noise for the given frames too, and leaves a trace of it there
    noise = torch.cat([torch.randn(1, 4, given, 4, 4), rollout_noise([7], STEPS, (4, 4, 4))], dim=2)
    theirs = run_pipeline(pipeline_module, world, pictures, noise, steps, guidance)

    ours = world.rollout(latents, STEPS, seeds=[7], num_inference_steps=steps, guidance_scale=guidance)

    assert ours.shape == theirs.shape
    tolerance = TOLERANCE if steps > 2 else ONE_STEP_TOLERANCE
    torch.testing.assert_close(ours[:, :, given:], theirs[:, :, given:], atol=tolerance, rtol=0)
    assert torch.equal(ours[:, :, :given], latents)
    # theirs: what is left of 80·noise after Euler steps towards the latent from sigma 80 to 0.002
    left = latents + (80 * noise[:, :, :given] - latents) * 0.002 / 80
    torch.testing.assert_close(theirs[:, :, :given], left, atol=ONE_STEP_TOLERANCE, rtol=0)


def test_first_latent_of_a_padded_clip_is_the_frame_alone(pipeline_module: object) -> None:
    world = tiny_world()
    frame = to_frames([picture(0)])
    padded = frame.repeat(1, 1, 9, 1, 1)  # what the pipeline encodes

    alone = world.encode(frame)

    assert torch.equal(alone, world.encode(padded)[:, :, :1])
