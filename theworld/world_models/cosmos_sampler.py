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


def moves(sigmas: Tensor) -> list[int]:
    """Steps of a schedule that change anything; a step of length zero is skipped."""
    return [step for step, (sigma, next_sigma) in enumerate(pairwise(sigmas.tolist())) if sigma != next_sigma]


def guided_passes(count: int, guidance_scale: float, interval: Sequence[float] | None) -> list[bool]:
    """Which of `count` passes are guided: with `interval` (start, end), pass i if start·count <= i < end·count."""
    start, end = interval or (0, 1)
    return [guidance_scale > 1 and start * count <= i < end * count for i in range(count)]


def transformer_passes(config: CosmosPredict2Config) -> int:
    """Passes of the transformer in a rollout with the settings of `config`; a guided step has two."""
    steps = moves(noise_schedule(config, config.num_inference_steps))
    return len(steps) + sum(guided_passes(len(steps), config.guidance_scale, config.guidance_interval))


def euler_step(
    future: Tensor,
    velocity: Tensor,
    sigma: Tensor,
    next_sigma: Tensor,
    guidance_scale: float | Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """One Euler step from the level sigma to next_sigma.

    Args:
        future: (n, C, N, h, w), float32, at the level sigma.
        velocity: the transformer's prediction, (n, C, N, h, w), or (2n, C, N, h, w) under guidance.
        dtype: the transformer's.
    """
    t = sigma / (sigma + 1)
    passes = velocity.shape[0] // future.shape[0]
    # velocity is noise - x0; rounded to the transformer's type because the pipeline does
    clean = ((1 - t) * future.repeat(passes, 1, 1, 1, 1) - t * velocity.float()).to(dtype).float()
    if passes == 2:
        clean, negative = clean.chunk(2)
        clean = clean + guidance_scale * (clean - negative)
    return future + (next_sigma - sigma) * ((future - clean) / sigma)


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
    guidance_interval: Sequence[float] | None = None,
    fps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoises the frames that follow the given ones.

    Args:
        given: (n, C, P + 1, h, w), float32, normalised.
        noise: (n, C, N, h, w), float32, at the level sigmas[0].
        text: (1, 1 or n, L, D), or (2, 1 or n, L, D) with the negative prompts last, which guidance needs.
        guidance_interval: see `guided_passes`; all passes by default.

    Returns:
        (n, C, N, h, w), float32, at the level sigmas[-1].
    """
    n, _, num_given, h, w = given.shape
    num_frames = num_given + noise.shape[2]
    dtype = transformer.dtype

    text = text.to(dtype).expand(-1, n, -1, -1).flatten(0, 1)
    condition_mask = given.new_zeros(text.shape[0], 1, num_frames, h, w, dtype=dtype)
    condition_mask[:, :, :num_given] = 1
    padding_mask = given.new_zeros(1, 1, h, w, dtype=dtype)  # 1 would mark padded pixels; there are none
    t_given = torch.tensor(sigma_conditioning) / (torch.tensor(sigma_conditioning) + 1)

    future = noise
    # on the device, as in the pipeline: CUDA divides by a CPU scalar through its reciprocal, which rounds differently
    levels = sigmas.to(given.device)
    steps = moves(sigmas)
    guided = guided_passes(len(steps), guidance_scale, guidance_interval)
    for done, step in enumerate(steps, start=1):
        sigma, next_sigma = levels[step], levels[step + 1]
        batch = 2 * n if guided[done - 1] else n
        t = sigma / (sigma + 1)  # the network's time: 0 is clean, 1 is noise
        timestep = t.repeat(1, 1, num_frames, 1, 1)
        timestep[:, :, :num_given] = t_given

        # given frames go in clean, the others as (1-t)·x0 + t·noise
        hidden = torch.cat([given, future * (1 - t)], dim=2).to(dtype)
        velocity = transformer(
            hidden_states=hidden.repeat(batch // n, 1, 1, 1, 1),
            timestep=timestep.to(dtype).expand(batch, -1, -1, -1, -1),
            encoder_hidden_states=text[:batch],
            fps=fps,
            condition_mask=condition_mask[:batch],
            padding_mask=padding_mask,
            return_dict=False,
        )[0][:, :, num_given:]
        future = euler_step(future, velocity, sigma, next_sigma, guidance_scale, dtype)
        if progress is not None:
            progress(done, len(steps))
    return future
