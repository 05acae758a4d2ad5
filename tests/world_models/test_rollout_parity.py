"""Our rollout against diffusers' own `Cosmos2VideoToWorldPipeline` on the same weights, pixels, prompts and noise.

Several images are a video so far: all their latents are kept, and the future is appended. What is done to the
pipeline for that is in `benchmarks/stock_pipeline.py`; `benchmarks/full_size.py` compares at full size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from benchmarks.stock_pipeline import pipeline_with_mean_latents, stock_latents
from tests.world_models.tiny import TINY_SIZE, tiny_frames, tiny_published_folder, tiny_world
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.cosmos_sampler import rollout_noise
from theworld.world_models.prompts import DEFAULT_NEGATIVE_PROMPT, encode_texts

STEPS = 2  # N
# On values of order 1. Measured: 0 without guidance; 3e-6 with it, since a batch of two rounds otherwise than two
# passes. A single step from sigma 80 subtracts numbers of order 240, which float32 holds to 1.5e-5: measured 3e-5.
TOLERANCE = 1e-5
ONE_STEP_TOLERANCE = 1e-4
PROMPTED_TOLERANCE = 1e-5  # measured 4e-6, where the prompt moves them by 0.17


@pytest.fixture
def pipeline_module() -> Iterator[object]:
    with pipeline_with_mean_latents() as module:
        yield module


def image(seed: int) -> Image.Image:
    frame = tiny_frames(seed=seed)[0, :, 0].permute(1, 2, 0)
    return Image.fromarray(((frame + 1) * 127.5).round().to(torch.uint8).numpy())


def to_frames(images: list[Image.Image]) -> Tensor:
    """(1, 3, F, H, W), F the number of images."""
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in images], dim=1)
    return pixels[None].float() / 127.5 - 1


def run_pipeline(
    module: object,
    world: CosmosPredict2,
    images: list[Image.Image],
    noise: Tensor,
    steps: int,
    guidance: float,
    text_encoder: object = None,
    tokenizer: object = None,
    prompt: str | None = None,
) -> Tensor:
    told: dict[str, object] = {"prompt": prompt}
    if prompt is None:
        assert world.prompt_embeds is not None
        assert world.negative_prompt_embeds is not None
        told = {
            "prompt_embeds": world.prompt_embeds[None],
            "negative_prompt_embeds": world.negative_prompt_embeds[None],
        }
    return stock_latents(
        module,
        world.vae,
        world.transformer,
        images,
        noise,
        size=TINY_SIZE,
        steps=steps,
        guidance=guidance,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        **told,
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' NumPy use
@pytest.mark.parametrize(
    ("num_images", "steps", "guidance", "dtype"),
    [
        pytest.param(1, 5, 1.0, torch.float32, id="no guidance"),
        pytest.param(1, 5, 3.0, torch.float32, id="guidance"),
        pytest.param(1, 2, 3.0, torch.float32, id="two steps"),
        pytest.param(5, 4, 3.0, torch.float32, id="a video so far"),
        pytest.param(9, 5, 1.0, torch.float32, id="a longer one, no guidance"),
        pytest.param(13, 4, 3.0, torch.float32, id="twice as much past as future"),
        pytest.param(9, 5, 1.0, torch.bfloat16, id="a longer one, bfloat16 weights"),
        pytest.param(1, 5, 1.0, torch.bfloat16, id="bfloat16 weights"),
    ],
)
def test_rollout_is_the_pipelines(
    pipeline_module: object, num_images: int, steps: int, guidance: float, dtype: torch.dtype
) -> None:
    world = tiny_world().to(dtype)
    images = [image(seed) for seed in range(num_images)]
    latents = world.encode(to_frames(images))
    given = latents.shape[2]
    assert given == 1 + (num_images - 1) // 4
    # the pipeline draws noise for the given frames too, and leaves a trace of it there
    noise = torch.cat([torch.randn(1, 4, given, 4, 4), rollout_noise([7], STEPS, (4, 4, 4))], dim=2)
    theirs = run_pipeline(pipeline_module, world, images, noise, steps, guidance)

    ours = world.rollout(latents, STEPS, seeds=[7], num_inference_steps=steps, guidance_scale=guidance)

    assert ours.shape == theirs.shape == (1, 4, given + STEPS, 4, 4)
    tolerance = TOLERANCE if steps > 2 else ONE_STEP_TOLERANCE
    torch.testing.assert_close(ours[:, :, given:], theirs[:, :, given:], atol=tolerance, rtol=0)
    assert torch.equal(ours[:, :, :given], latents)
    # theirs: what is left of 80·noise after Euler steps towards the latent from sigma 80 to 0.002
    left = latents + (80 * noise[:, :, :given] - latents) * 0.002 / 80
    torch.testing.assert_close(theirs[:, :, :given], left, atol=ONE_STEP_TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_images", [1, 5])
def test_a_prompted_rollout_is_the_pipelines(pipeline_module: object, tmp_path: Path, num_images: int) -> None:
    """From the words on: their tokenizer, T5, zeros behind the prompt, default negative prompt and guidance of 7."""
    folder = tiny_published_folder(tmp_path / "cosmos")
    world = CosmosPredict2.from_pretrained(folder)
    images = [image(seed) for seed in range(num_images)]
    latents = world.encode(to_frames(images))
    given = latents.shape[2]
    noise = torch.cat([torch.randn(1, 4, given, 4, 4), rollout_noise([7], STEPS, (4, 4, 4))], dim=2)
    prompt = "the cup is pushed to the left"
    theirs = run_pipeline(
        pipeline_module,
        world,
        images,
        noise,
        steps=5,
        guidance=7.0,
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        prompt=prompt,
    )

    # float32, so that what is compared is more than the rounding of bfloat16
    texts = encode_texts(folder, [prompt, DEFAULT_NEGATIVE_PROMPT, ""], world.prompt_shape, dtype=torch.float32)
    ours, unprompted = (
        world.rollout(
            latents, STEPS, seeds=[7], num_inference_steps=5, prompt_embeds=text, negative_prompt_embeds=texts[1]
        )
        for text in (texts[0], texts[2])
    )

    assert world.config.guidance_scale == 7.0
    torch.testing.assert_close(ours[:, :, given:], theirs[:, :, given:], atol=PROMPTED_TOLERANCE, rtol=0)
    assert (ours - unprompted)[:, :, given:].abs().max() > 100 * PROMPTED_TOLERANCE, "the prompt counts"


def test_first_latent_of_a_padded_clip_is_the_frame_alone(pipeline_module: object) -> None:
    world = tiny_world()
    frame = to_frames([image(0)])
    padded = frame.repeat(1, 1, 9, 1, 1)  # what the pipeline encodes

    alone = world.encode(frame)

    assert torch.equal(alone, world.encode(padded)[:, :, :1])
