"""The sampler of a rollout: noise from seeds, a Karras schedule, and Euler steps over all future frames at once.

Arithmetic and order of operations are `Cosmos2VideoToWorldPipeline`'s; docs/autoregressive_world_rollout.md derives it.

Shape legend: n samples, C latent channels, P + 1 given latent frames (P before now) and N imagined ones, T = P + 1 + N,
h×w cells, L prompt tokens of width D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theworld.world_models.configuration import CosmosPredict2Config
from theworld.world_models.cosmos_components import new_scheduler

if TYPE_CHECKING:
    from diffusers import CosmosTransformer3DModel


def rollout_noise(seeds: Sequence[int], num_world_steps: int, shape: tuple[int, int, int]) -> Tensor:
    """Unit Gaussian noise (n, C, N, h, w), float32, on the CPU, for latent frames of `shape` (C, h, w).

    There is one generator per sample and one call per frame, so that a sample's noise depends neither on the batch nor
    on the device, and its first frames stay the same if more are imagined.
    """
    samples = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(int(seed))
        frames = [torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(num_world_steps)]
        samples.append(torch.stack(frames, dim=1))
    return torch.stack(samples)


def noise_schedule(config: CosmosPredict2Config, num_inference_steps: int) -> Tensor:
    """Noise levels σ (num_inference_steps + 1,), decreasing, float32, on the CPU."""
    scheduler = new_scheduler(config)
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, num_inference_steps, dtype=torch.float64).tolist())
    sigmas: Tensor = scheduler.sigmas
    if scheduler.config.final_sigmas_type == "sigma_min":
        sigmas[-1] = sigmas[-2]  # the pipeline ends at sigma_min, not at 0: its last step has length zero
    return sigmas


@torch.no_grad()
def denoise(
    transformer: CosmosTransformer3DModel,
    given: Tensor,
    noise: Tensor,
    text: Tensor,
    *,
    sigmas: Tensor,
    sigma_conditioning: float,
    guidance_scale: float,
    fps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoises the frames that follow the given ones.

    Args:
        given: (n, C, P + 1, h, w), float32, normalised.
        noise: (n, C, N, h, w), float32, at the level sigmas[0].
        text: (n, L, D), or (2n, L, D) with the negative prompts last, which enables guidance.

    Returns:
        (n, C, N, h, w), float32, at the level sigmas[-1].
    """
    n, _, num_given, h, w = given.shape
    num_frames = num_given + noise.shape[2]
    passes = text.shape[0] // n  # 2 under guidance
    dtype = transformer.dtype

    text = text.to(dtype)
    condition_mask = given.new_zeros(passes * n, 1, num_frames, h, w, dtype=dtype)
    condition_mask[:, :, :num_given] = 1
    padding_mask = given.new_zeros(1, 1, h, w, dtype=dtype)  # 1 would mark padded pixels; there are none
    t_given = torch.tensor(sigma_conditioning) / (torch.tensor(sigma_conditioning) + 1)

    future = noise
    # on the device, as in the pipeline: CUDA divides by a CPU scalar through its reciprocal, which rounds differently
    levels = sigmas.to(given.device)
    # a step of length zero changes nothing, so it is skipped
    moves = [step for step, (s, s_next) in enumerate(pairwise(sigmas.tolist())) if s != s_next]
    for done, step in enumerate(moves, start=1):
        sigma, next_sigma = levels[step], levels[step + 1]
        t = sigma / (sigma + 1)  # the network's time: 0 is clean, 1 is noise
        timestep = t.repeat(1, 1, num_frames, 1, 1)
        timestep[:, :, :num_given] = t_given

        # given frames go in clean, the others as (1-t)·x0 + t·noise
        hidden = torch.cat([given, future * (1 - t)], dim=2).to(dtype)
        velocity = transformer(
            hidden_states=hidden.repeat(passes, 1, 1, 1, 1),
            timestep=timestep.to(dtype).expand(passes * n, -1, -1, -1, -1),
            encoder_hidden_states=text,
            fps=fps,
            condition_mask=condition_mask,
            padding_mask=padding_mask,
            return_dict=False,
        )[0][:, :, num_given:]

        # velocity is noise - x0; rounded to the transformer's type because the pipeline does
        clean = ((1 - t) * future.repeat(passes, 1, 1, 1, 1) - t * velocity.float()).to(dtype).float()
        if passes == 2:
            clean, negative = clean.chunk(2)
            clean = clean + guidance_scale * (clean - negative)

        future = future + (next_sigma - sigma) * ((future - clean) / sigma)  # Euler
        if progress is not None:
            progress(done, len(moves))
    return future
