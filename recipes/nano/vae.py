"""Stage (a) of nano: a Wan VAE learns to encode and decode physics clips, without labels.

Shapes: n clips, F pixel frames, T latent frames, C latent channels, H x W pixels, h x w latent cells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.nano.buffers import FrameBuffer, wait_for_clips
from recipes.nano.progress import (
    CsvLog,
    StageClock,
    check_finite,
    learning_rate,
    load_state,
    optimizer_step,
    save_state,
)
from recipes.nano.wan import decode_frames, encode_moments, latent_statistics
from theworld.world_models.configuration import CosmosPredict2Config

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

logger = logging.getLogger(__name__)

SHARD_SIZE = "15MB"  # no file of the shipped weights is larger
MOVING = 0.1  # change of a pixel, of a range of 2, that counts as motion
CHUNK = 256  # clips encoded at a time where nothing else sets the number


@dataclass(frozen=True)
class VAESettings:
    """Stage (a).

    Args:
        seconds: wall-clock budget of the training loop.
        phases: (share of the budget at which the phase ends, frames of a window, batch size), in order. Single frames
            are cheapest and teach the decoder to draw; windows then teach it time.
        moving_weight: weight of pixels that move, against 1; without it small balls vanish from reconstructions.
        edge_weight: weight added where neighbouring pixels differ, for the small things that do not move.
        kl_weight: of the mean over latents; only keeps latents from drifting apart.
        min_clips: clips to wait for before the first step.
    """

    seconds: float = 240.0
    phases: tuple[tuple[float, int, int], ...] = ((0.1, 1, 512), (0.35, 5, 128), (1.0, 17, 40))
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    moving_weight: float = 12.0
    edge_weight: float = 3.0
    kl_weight: float = 1e-4
    min_clips: int = 8000
    seed: int = 0
    log_seconds: float = 3.0
    checkpoint_seconds: float = 40.0
    measure_seconds: float = 40.0


def train_vae(
    settings: VAESettings,
    config: CosmosPredict2Config,
    frames: FrameBuffer,
    work: Path,
    device: torch.device,
    *,
    check: Callable[[], None] = lambda: None,
    measure: Callable[[AutoencoderKLWan, bool], dict[str, float] | None] | None = None,
) -> AutoencoderKLWan:
    """Trains the VAE on `frames` and returns it with bf16-rounded weights and its latents' statistics in its config.

    Args:
        work: gets `vae/` (the result: a second call returns it), `vae_state.pt` (checkpoint), `vae_loss.csv`, and
            `vae_measure.csv` with what `measure` returned.
        check: called repeatedly; raises if the clip workers have failed.
        measure: called every `measure_seconds` with the VAE and False, and at the end with True: it then waits until it
            can measure. None means not ready yet.
    """
    from diffusers import AutoencoderKLWan

    if (work / "vae" / "config.json").is_file():
        logger.info("VAE: already trained")
        return AutoencoderKLWan.from_pretrained(work / "vae", torch_dtype=torch.float32).to(device).eval()
    torch.manual_seed(settings.seed)
    vae = AutoencoderKLWan(**config.vae).to(device).train()
    logger.info("vae: %d parameters", sum(p.numel() for p in vae.parameters()))
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=device.type == "cuda"
    )
    step, spent = load_state(work / "vae_state.pt", device, model=vae, optimizer=optimizer)
    losses = CsvLog(
        work / "vae_loss.csv", ("seconds", "step", "frames", "loss", "error", "kl", "lr", "per_second", "clips")
    )
    measures = CsvLog(work / "vae_measure.csv", ("seconds", "step", "clips", "psnr", "psnr_moving"))
    wait_for_clips(lambda: frames.available(), settings.min_clips, frames.capacity, check)
    clock = StageClock(settings.seconds, spent)
    sums, seen = torch.zeros(3, device=device), 0
    while not clock.over():
        window, batch = next((w, b) for share, w, b in settings.phases if clock.share() < share or share >= 1.0)
        clips = frames.sample(batch)
        if step % 2:
            clips = clips.flip(3)  # physics has no left and right
        pixels, moving = random_windows(clips, window)
        rate = learning_rate(settings.learning_rate, step, settings.warmup_steps, clock.share())
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, logvar = encode_moments(vae, pixels)
            decoded = decode_frames(vae, mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        error = reconstruction_loss(decoded, pixels, moving, settings)
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        loss = error + settings.kl_weight * kl
        optimizer_step(loss, vae, optimizer, rate, settings.max_grad_norm)
        step, seen = step + 1, seen + batch
        sums += torch.stack([loss.detach(), error.detach(), kl.detach()])
        if clock.due("log", settings.log_seconds) or clock.over():
            done = clock.since("log_steps", step)
            values = check_finite(sums / done, "vae")
            row = (clock.spent(), step, window, *values, rate, clock.rate("log_rate", seen), frames.filled)
            logger.info("vae: %s", losses.add(row))
            sums.zero_()
            check()
        if clock.due("checkpoint", settings.checkpoint_seconds):
            save_state(work / "vae_state.pt", step, clock.spent(), model=vae, optimizer=optimizer)
        if measure is not None and clock.due("measure", settings.measure_seconds):
            with clock.paused():
                if (values_of := measure(vae.eval(), False)) is not None:
                    measures.add((clock.spent(), step, frames.filled, values_of["psnr"], values_of["psnr_moving"]))
                    logger.info("vae: %s", values_of)
                vae.train()
    # rounded before anything is encoded: the shipped bf16 weights then give the latents the transformer learns on
    vae.eval()
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    center, scale = _measure_statistics(vae, frames)
    vae.register_to_config(latents_mean=center, latents_std=scale)
    if measure is not None and (values_of := measure(vae, True)) is not None:
        measures.add((clock.spent(), step, frames.filled, values_of["psnr"], values_of["psnr_moving"]))
    vae.save_pretrained(work / "vae", max_shard_size=SHARD_SIZE)
    return vae


def random_windows(clips: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """A random window of each clip, and where it moves.

    Args:
        clips: uint8 (n, F, H, W, 3).
        frames: frames of a window, at most F.

    Returns:
        Pixels (n, 3, frames, H, W), float in [-1, 1], and moving pixels (n, frames, H, W), bool: those that differ from
        the frame before or after, or from the clip's first or last, and their neighbours.
    """
    n, total = clips.shape[:2]
    start = torch.randint(total - frames + 1, (n, 1), device=clips.device)
    place = start + torch.arange(frames, device=clips.device)  # (n, frames)
    clip = torch.arange(n, device=clips.device)[:, None]
    window = to_pixels(clips[clip, place])
    moving = torch.zeros_like(window[:, 0], dtype=torch.bool)
    for others in ((place - 1).clamp(min=0), (place + 1).clamp(max=total - 1), place * 0, place * 0 + total - 1):
        moving |= (window - to_pixels(clips[clip, others])).abs().amax(dim=1) > MOVING
    return window, F.max_pool2d(moving.float(), 5, stride=1, padding=2) > 0


def to_pixels(clips: Tensor) -> Tensor:
    """uint8 (n, F, H, W, 3) -> float (n, 3, F, H, W) in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def reconstruction_loss(decoded: Tensor, pixels: Tensor, moving: Tensor, settings: VAESettings) -> Tensor:
    """Weighted mean of |d| + 2d² over pixels: the first keeps edges sharp, the second small things visible."""
    difference = decoded - pixels
    error = (difference.abs() + 2 * difference.square()).mean(dim=1)  # (n, F, H, W)
    edges = torch.zeros_like(error)
    for dim in (-1, -2):
        step = pixels.diff(dim=dim).abs().amax(dim=1) > MOVING
        edges.narrow(dim, 0, step.shape[dim]).add_(step)
        edges.narrow(dim, 1, step.shape[dim]).add_(step)
    weight = 1.0 + (settings.moving_weight - 1.0) * moving + settings.edge_weight * (edges > 0)
    return (weight * error).sum() / weight.sum()


@torch.no_grad()
def encode_normalised(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Normalised mean latents (n, C, T, h, w), float32, of uint8 clips (n, F, H, W, 3)."""
    mean, std = latent_statistics(vae)
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=vae.device.type == "cuda"):
        return (encode_moments(vae, to_pixels(clips))[0] - mean) / std


@torch.no_grad()
def _measure_statistics(vae: AutoencoderKLWan, frames: FrameBuffer) -> tuple[list[float], list[float]]:
    """Mean and std of every latent channel over up to 4096 random clips."""
    available = min(4096, frames.available())
    chunk = min(CHUNK, available)
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=vae.device.type == "cuda"):
        latents = [encode_moments(vae, to_pixels(frames.sample(chunk)))[0] for _ in range(available // chunk)]
    channels = torch.cat(latents).transpose(0, 1).flatten(1)  # (C, n·T·h·w)
    return channels.mean(dim=1).tolist(), channels.std(dim=1).clamp(min=1e-3).tolist()
