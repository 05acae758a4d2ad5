"""Checks of what goes into a Cosmos-Predict2: frames, latents, and the size of a rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import CosmosTransformer3DModel


def check_frames(frames: Tensor, temporal_factor: int, spatial_factor: int) -> None:
    """Raises a ValueError unless these are float frames (n, 3, F, H, W) in [-1, 1] that the VAE can encode."""
    if frames.ndim != 5 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; they must be (n, 3, F, H, W).")
    if not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}; they must be floats in [-1, 1]: uint8 / 127.5 - 1.")
    if not frames.is_meta:
        low, high = torch.stack(frames.detach().aminmax()).tolist()  # one transfer
        if not (low >= -1.001 and high <= 1.001):  # written so that NaN is refused too
            raise ValueError(f"frames are in [{low:.4g}, {high:.4g}]; they must be in [-1, 1]: uint8 / 127.5 - 1.")
    num_frames, height, width = frames.shape[2:]
    if (num_frames - 1) % temporal_factor:
        raise ValueError(f"Got {num_frames} frames; their number must be 1 + {temporal_factor}·k.")
    if height % spatial_factor or width % spatial_factor:
        raise ValueError(f"Frames are {height}×{width}; each side must be a multiple of {spatial_factor}.")


def check_latents(latents: Tensor, channels: int) -> None:
    """Raises a ValueError unless these are float latents (n, channels, T, h, w)."""
    if not isinstance(latents, Tensor):
        raise ValueError(f"latents have the type {type(latents).__name__}; pass a tensor (n, {channels}, T, h, w).")
    if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; they must be (n, {channels}, T, h, w).")
    if not latents.is_floating_point():
        raise ValueError(f"latents are {latents.dtype}; they must be floats.")


def check_grid(latents: Tensor, num_world_steps: int, transformer: CosmosTransformer3DModel) -> None:
    """Raises a ValueError if a rollout after these latents is larger than the transformer's position embedding."""
    grid = (latents.shape[2] + num_world_steps, latents.shape[3], latents.shape[4])
    limits, patches = transformer.config.max_size, transformer.config.patch_size
    for name, size, limit, patch in zip(("frames", "rows", "columns"), grid, limits, patches, strict=True):
        if size > limit:
            remedy = "fewer world steps" if name == "frames" else "a smaller world_image_size"
            raise ValueError(
                f"The rollout has {size} latent {name}, and this transformer takes at most {limit}; use {remedy}."
            )
        if size % patch:
            raise ValueError(f"The rollout has {size} latent {name}; this transformer needs a multiple of {patch}.")
