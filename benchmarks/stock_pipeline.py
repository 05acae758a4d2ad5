"""diffusers' own `Cosmos2VideoToWorldPipeline`, run so that a rollout can be compared with it.

Two things are done to it. It refuses `safety_checker=None`; it gets an object that does nothing, and with prompt
embeddings in and latents out there is nothing to check. It samples the conditioning latent; its `retrieve_latents` is
replaced by one that takes the mean, as ours does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor


class NothingToCheck:
    """Stands where the guardrail would; the pipeline moves it about."""

    def to(self, device: torch.device | str) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True


@contextmanager
def pipeline_with_mean_latents() -> Iterator[Any]:
    """The pipeline's module, whose conditioning latent is the mean while the block lasts."""
    from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world as module

    with patch.object(module, "retrieve_latents", lambda encoded, generator=None: encoded.latent_dist.mean):
        yield module


def stock_latents(
    module: Any,
    vae: AutoencoderKLWan,
    transformer: CosmosTransformer3DModel,
    images: Sequence[Image.Image],
    noise: Tensor,
    *,
    size: int,
    steps: int,
    guidance: float,
    text_encoder: object = None,
    tokenizer: object = None,
    **given: Any,
) -> Tensor:
    """Latents (1, C, T, h, w) of the pipeline, as its `output_type="latent"` hands them out.

    Args:
        module: of `pipeline_with_mean_latents`.
        images: one, or a video so far; the pipeline brings them to `size` pixels a side.
        noise: (1, C, T, h, w), unit, also for the frames that are given.
        given: `prompt`, or `prompt_embeds` and `negative_prompt_embeds`, each (1, L, D).
    """
    pipeline = module.Cosmos2VideoToWorldPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=NothingToCheck(),
    )
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        **({"image": images[0]} if len(images) == 1 else {"video": list(images)}),
        height=size,
        width=size,
        num_frames=1 + 4 * (noise.shape[2] - 1),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        output_type="latent",
        **given,
    ).frames
    return latents
