"""What the world model's transformer is trained on: exactly what a rollout feeds it.

A rollout walks noise levels σ from 80 to 0.002; in flow terms t = σ/(σ+1), a noisy latent is (1-t)·x0 + t·n, and the
network predicts n - x0 (see `theworld.world_models.cosmos_sampler`). Given frames go in clean, carry a 1 in the
condition mask and the time of `sigma_conditioning`; only imagined frames count in the loss.

Shapes: n clips, C latent channels, P given frames, T = P + N latent frames, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevels:
    """How noise levels are drawn in training: ln σ is normal, and some samples start where every rollout starts.

    Args:
        mean, std: of ln σ.
        at_max: share of samples at sigma_max exactly: a rollout's first step decides what will happen.
        sigma_min, sigma_max: the scheduler's.
    """

    mean: float = 0.8
    std: float = 1.6
    at_max: float = 0.1
    sigma_min: float = 0.002
    sigma_max: float = 80.0


def flow_time(sigma: Tensor) -> Tensor:
    """t = σ/(σ+1): 0 is clean, 1 is noise."""
    return sigma / (sigma + 1)


def sample_times(n: int, levels: NoiseLevels, device: torch.device) -> Tensor:
    """n random flow times (n,), float32."""
    sigma = torch.exp(levels.mean + levels.std * torch.randn(n, device=device))
    sigma = torch.where(torch.rand(n, device=device) < levels.at_max, levels.sigma_max, sigma)
    return flow_time(sigma.clamp(levels.sigma_min, levels.sigma_max))


@dataclass(frozen=True)
class FlowInputs:
    """The transformer's inputs at one noise level, and its target.

    Attributes:
        hidden: (n, C, T, h, w), given frames clean, the others noisy.
        timestep: (n, 1, T, 1, 1), flow time of each frame.
        condition_mask: (n, 1, T, h, w), 1 on given frames.
        target: (n, C, T, h, w), n - x0; meaningless on given frames.
    """

    hidden: Tensor
    timestep: Tensor
    condition_mask: Tensor
    target: Tensor


def flow_inputs(latents: Tensor, noise: Tensor, times: Tensor, num_given: int, sigma_conditioning: float) -> FlowInputs:
    """Noisy inputs and target for `latents` (n, C, T, h, w), `noise` alike, and flow `times` (n,)."""
    n, _, num_frames, h, w = latents.shape
    given = torch.arange(num_frames, device=latents.device) < num_given  # (T,)
    given = given.view(1, 1, num_frames, 1, 1)
    t = times.view(n, 1, 1, 1, 1)
    t_given = sigma_conditioning / (sigma_conditioning + 1)
    return FlowInputs(
        hidden=torch.where(given, latents, (1 - t) * latents + t * noise),
        timestep=torch.where(given, t_given, t),
        condition_mask=given.to(latents.dtype).expand(n, 1, num_frames, h, w),
        target=noise - latents,
    )
