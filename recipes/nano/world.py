"""Stage (b) of nano: a Cosmos transformer learns, on the VAE's latents, what comes after a first frame. No labels.

Like stage (a), this is one function that trains until its wall-clock budget is spent, writes losses to CSV, and resumes
from a checkpoint when it is called again with the same folder.

Shapes: n clips, T latent frames, C latent channels, h x w latent cells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.nano.buffers import FrameBuffer, LatentBank, wait_for_clips
from recipes.nano.flow import NoiseLevels, flow_inputs, sample_times
from recipes.nano.progress import (
    CsvLog,
    StageClock,
    check_finite,
    learning_rate,
    load_state,
    optimizer_step,
    save_state,
)
from recipes.nano.vae import CHUNK, SHARD_SIZE, encode_normalised
from theworld.world_models.configuration import COSMOS_SCHEDULER, CosmosPredict2Config
from theworld.world_models.cosmos_predict2 import CosmosPredict2

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

logger = logging.getLogger(__name__)

TEXT_TOKENS = 16
NANO_VAE: dict[str, Any] = {"base_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "z_dim": 16}
NANO_TRANSFORMER: dict[str, Any] = {
    "in_channels": 17,
    "out_channels": 16,
    "num_attention_heads": 5,
    "attention_head_dim": 64,
    "num_layers": 8,
    "mlp_ratio": 4.0,
    "text_embed_dim": 64,
    "adaln_lora_dim": 48,
    "max_size": [17, 8, 8],
    "patch_size": [1, 1, 1],
    "rope_scale": [1.0, 1.0, 1.0],
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}


def nano_world_config(num_inference_steps: int = 4) -> CosmosPredict2Config:
    """The shipped world model's config: Cosmos-Predict2's classes, small, without guidance."""
    return CosmosPredict2Config(
        vae=dict(NANO_VAE),
        transformer=dict(NANO_TRANSFORMER),
        scheduler=dict(COSMOS_SCHEDULER),
        text_tokens=TEXT_TOKENS,
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
    )


@dataclass(frozen=True)
class TransformerSettings:
    """Stage (b).

    Args:
        seconds: wall-clock budget of the training loop.
        world_steps: (num_world_steps, share of steps): mostly complete clips, sometimes fewer steps, so that the model
            has seen rollouts of other lengths.
        encode_every, encode_clips: every `encode_every` steps, up to `encode_clips` new clips are encoded.
        max_clips: capacity of the latent bank.
        min_clips: clips to encode before the first step.
        compile: compile each transformer block (one compilation per rollout length).
    """

    seconds: float = 480.0
    batch: int = 128
    world_steps: tuple[tuple[int, float], ...] = ((4, 0.8), (3, 0.04), (2, 0.08), (1, 0.08))
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.999
    noise: NoiseLevels = field(default_factory=NoiseLevels)
    encode_every: int = 2
    encode_clips: int = 128
    max_clips: int = 800_000
    min_clips: int = 8000
    compile: bool = False
    seed: int = 0
    log_seconds: float = 3.0
    checkpoint_seconds: float = 60.0
    measure_seconds: float = 60.0


def train_transformer(
    settings: TransformerSettings,
    config: CosmosPredict2Config,
    vae: AutoencoderKLWan,
    frames: FrameBuffer,
    work: Path,
    device: torch.device,
    *,
    check: Callable[[], None] = lambda: None,
    measure: Callable[[Path, int, int], None] | None = None,
) -> Path:
    """Trains the transformer on `frames` seen through `vae` and returns the finished world folder, `work/world`.

    Args:
        vae: from `train_vae`.
        work: gets `world/` (the result, bf16, read by `CosmosPredict2.from_pretrained`; a second call returns it),
            `transformer_state.pt` (checkpoint), `latents/` and `transformer_loss.csv`.
        check: called repeatedly; raises if the clip workers have failed.
        measure: called every `measure_seconds` with a folder of the averaged weights so far, the step, and the clips
            encoded so far. Its time is not counted as training.
    """
    if (work / "world" / "model_index.json").is_file():
        logger.info("transformer: already trained")
        return work / "world"
    torch.manual_seed(settings.seed)
    world = new_world(config, vae)
    transformer = world.transformer
    assert transformer is not None
    assert world.prompt_embeds is not None
    transformer.to(device).train()
    text = world.prompt_embeds.to(device).expand(settings.batch, -1, -1)
    averaged = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    logger.info("transformer: %d parameters", sum(p.numel() for p in averaged.values()))
    optimizer = torch.optim.AdamW(
        transformer.parameters(),
        lr=0.0,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    state_file = work / "transformer_state.pt"
    step, spent = load_state(state_file, device, model=transformer, optimizer=optimizer, averaged=averaged)
    shape = frames.clip_shape
    latent_shape = tuple(
        encode_normalised(vae, torch.zeros((1, *shape, 3), dtype=torch.uint8, device=device)).shape[1:]
    )
    bank = LatentBank(work / "latents", settings.max_clips, latent_shape, device)
    losses = CsvLog(work / "transformer_loss.csv", ("seconds", "step", "loss", "lr", "per_second", "clips", "waiting"))

    def encode_some(n: int) -> None:
        clips = frames.take(n)
        if len(clips):
            bank.add(encode_normalised(vae, clips))

    def loss_of(num_world_steps: int, latents: Tensor) -> Tensor:
        times = sample_times(len(latents), settings.noise, device)
        latents = latents[:, :, : 1 + num_world_steps]
        inputs = flow_inputs(latents, torch.randn_like(latents), times, 1, config.sigma_conditioning)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            velocity = transformer(
                hidden_states=inputs.hidden,
                timestep=inputs.timestep,
                encoder_hidden_states=text,
                fps=config.fps,
                condition_mask=inputs.condition_mask,
                padding_mask=latents.new_zeros(1, 1, *latents.shape[-2:]),
                return_dict=False,
            )[0]
        return F.mse_loss(velocity[:, :, 1:].float(), inputs.target[:, :, 1:])

    while bank.count < min(settings.min_clips, settings.max_clips):
        wait_for_clips(lambda: frames.waiting(), 1, frames.capacity, check)
        encode_some(CHUNK)
    lengths, shares = zip(*settings.world_steps, strict=True)
    if settings.compile:
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False)
        started = time.monotonic()
        for length in lengths:  # before the clock runs
            loss_of(length, bank.sample(settings.batch)).backward()
        optimizer.zero_grad(set_to_none=True)
        logger.info("transformer: compiled in %.0f s", time.monotonic() - started)
    clock = StageClock(settings.seconds, spent)
    total, seen = torch.zeros(1, device=device), 0
    draws = torch.Generator().manual_seed(settings.seed + step)
    while not clock.over():
        if step % settings.encode_every == 0 and not bank.full() and frames.waiting() >= settings.encode_clips:
            encode_some(settings.encode_clips)
        length = lengths[int(torch.multinomial(torch.tensor(shares), 1, generator=draws))]
        rate = learning_rate(settings.learning_rate, step, settings.warmup_steps, clock.share())
        loss = loss_of(length, bank.sample(settings.batch))
        optimizer_step(loss, transformer, optimizer, rate, settings.max_grad_norm)
        step, seen = step + 1, seen + settings.batch
        decay = min(settings.ema, (1 + step) / (10 + step))  # the average forgets its random start quickly
        torch._foreach_lerp_(list(averaged.values()), list(transformer.parameters()), 1.0 - decay)
        total += loss.detach()
        if clock.due("log", settings.log_seconds) or clock.over():
            (value,) = check_finite(total / clock.since("log_steps", step), "transformer")
            row = (clock.spent(), step, value, rate, clock.rate("log_rate", seen), bank.count, frames.waiting())
            logger.info("transformer: %s", losses.add(row))
            total.zero_()
            check()
        if clock.due("checkpoint", settings.checkpoint_seconds):
            save_state(state_file, step, clock.spent(), model=transformer, optimizer=optimizer, averaged=averaged)
        if measure is not None and (clock.due("measure", settings.measure_seconds)):
            with clock.paused():
                measure(save_world(work / "averaged", config, vae, world, averaged), step, bank.count)
    save_state(state_file, step, clock.spent(), model=transformer, optimizer=optimizer, averaged=averaged)
    bank.flush()
    folder = save_world(work / "world", config, vae, world, averaged)
    if measure is not None:
        measure(folder, step, bank.count)
    return folder


def new_world(config: CosmosPredict2Config, vae: AutoencoderKLWan) -> CosmosPredict2:
    """An untrained world model around `vae`'s config, with its fixed prompt.

    Every block starts as the identity and the output at zero (adaLN-Zero, https://arxiv.org/abs/2212.09748). The prompt
    is one fixed random embedding: cross-attention to it serves as a small memory. The negative prompt is the same, so
    that guidance, which nano is not trained for, changes nothing.
    """
    settings = CosmosPredict2Config(**{**config.to_dict(), "vae": _plain_config(vae)})
    world = CosmosPredict2(settings, parts=("transformer",))
    assert world.transformer is not None
    for block in world.transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2, block.norm3):
            torch.nn.init.zeros_(norm.linear_2.weight)
    torch.nn.init.zeros_(world.transformer.time_embed.t_embedder.linear_2.weight)
    torch.nn.init.zeros_(world.transformer.norm_out.linear_2.weight)
    torch.nn.init.zeros_(world.transformer.proj_out.weight)
    assert world.prompt_embeds is not None
    world.negative_prompt_embeds = world.prompt_embeds.clone()
    return world


def save_world(
    folder: Path, config: CosmosPredict2Config, vae: AutoencoderKLWan, world: CosmosPredict2, weights: dict[str, Tensor]
) -> Path:
    """Writes VAE, transformer `weights` and prompt as one bf16 world folder in diffusers' layout; returns it."""
    whole = CosmosPredict2(world.config)
    assert whole.vae is not None
    assert whole.transformer is not None
    whole.vae.load_state_dict(vae.state_dict())
    whole.transformer.load_state_dict(weights)
    whole.prompt_embeds, whole.negative_prompt_embeds = world.prompt_embeds, world.negative_prompt_embeds
    whole.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    return folder


def _plain_config(vae: AutoencoderKLWan) -> dict[str, Any]:
    return {key: value for key, value in vae.config.items() if not key.startswith("_")}
