"""Cosmos-Predict2 with diffusers' classes: a Wan VAE, a Cosmos video transformer and a flow-matching scheduler.

The sampler follows `Cosmos2VideoToWorldPipeline` step by step (https://huggingface.co/papers/2501.03575 and diffusers'
`pipeline_cosmos2_video2world.py`) without its unnecessary work: only the given frames are encoded, the latent is the
mean and not a sample, guidance is one batch of two, and a last step of length zero is not computed.

Shapes: n images or videos, F pixel frames, C latent channels, P + 1 given latent frames (P before now) and N imagined
ones, T = P + 1 + N, h×w cells, L prompt tokens of width D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theworld.storage.adapters import check_names, read_tensors
from theworld.storage.files import atomic_folder, write_json, write_tensors
from theworld.world_models import guardrail
from theworld.world_models.base import PROMPT_EMBEDS, WORLD_PARTS, WorldModel, check_parts
from theworld.world_models.configuration import (
    COSMOS_2B_TRANSFORMER,
    COSMOS_SCHEDULER,
    CosmosPredict2Config,
    check_interval,
)
from theworld.world_models.cosmos_checks import check_frames, check_grid, check_latents
from theworld.world_models.cosmos_components import (
    MODEL_INDEX,
    ROLLOUT_CONFIG,
    ROLLOUT_FIELDS,
    file_patterns,
    new_scheduler,
    new_transformer,
    new_vae,
    read_config,
    read_transformer,
    read_vae,
)
from theworld.world_models.cosmos_fast import FastPaths
from theworld.world_models.cosmos_sampler import noise_schedule, rollout_noise
from theworld.world_models.diffusers_folder import find_folder
from theworld.world_models.prompts import DEFAULT_NEGATIVE_PROMPT, DEFAULT_PROMPT, embed_prompts, has_text_encoder

if TYPE_CHECKING:  # diffusers takes seconds to import, and `import theworld` reaches this module
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from transformers import BitsAndBytesConfig

RECENT_PROMPTS = 64  # 1 MB each

PART_PREFIXES = {
    "encoder": ("vae.encoder.", "vae.quant_conv."),
    "decoder": ("vae.decoder.", "vae.post_quant_conv."),
    "transformer": ("transformer.", "prompt_embeds", "negative_prompt_embeds"),
}


class CosmosPredict2(WorldModel):
    """A Cosmos-Predict2 world model with random weights; `from_pretrained` reads real ones.

    Args:
        config: the diffusers configs of the three components, and how a rollout is sampled.
        parts: which of `encoder`, `decoder` and `transformer` exist in memory.

    Attributes:
        vae: `AutoencoderKLWan`, with None for a half that is not loaded; None if neither half is.
        transformer: `CosmosTransformer3DModel`, or None.
        prompt_embeds, negative_prompt_embeds: (L, D) default prompts of a rollout, buffers that are loaded with the
            transformer; None if the folder has no `prompt_embeds.safetensors`, until `load_default_prompts`.

    Raises:
        ValueError: if a part or a key of a diffusers config is unknown, or the components do not match.
    """

    vae: AutoencoderKLWan | None
    transformer: CosmosTransformer3DModel | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None

    def __init__(self, config: CosmosPredict2Config, parts: Sequence[str] = WORLD_PARTS) -> None:
        super().__init__()
        parts = check_parts(parts)
        self.config = config
        self.vae = None
        self.transformer = None
        self.register_buffer("prompt_embeds", None)
        self.register_buffer("negative_prompt_embeds", None)
        self._source: tuple[str, str | None, torch.dtype | None] | None = None  # what load_parts reads from
        self._quantization: BitsAndBytesConfig | None = None
        self._runs_on: torch.device | None = None  # where a transformer runs that waits in CPU memory
        self._embedded: dict[str, Tensor] = {}  # default prompts that the source does not have
        self._recent: dict[str, Tensor] = {}  # embeddings of users' prompts, for a loop over images
        self._fast = FastPaths()
        new_scheduler(config)  # a wrong config fails here, not at the first rollout
        if "encoder" in parts or "decoder" in parts:
            self._take_vae(new_vae(config), parts)
        if "transformer" in parts:
            self.transformer = new_transformer(config)
            prompt_shape = (config.text_tokens, self.transformer.config.text_embed_dim)
            self.prompt_embeds = torch.randn(prompt_shape)
            self.negative_prompt_embeds = torch.randn(prompt_shape)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[str, ...]:
        present = {
            "encoder": self.vae is not None and self.vae.encoder is not None,
            "decoder": self.vae is not None and self.vae.decoder is not None,
            "transformer": self.transformer is not None,
        }
        return tuple(part for part in WORLD_PARTS if present[part])

    def _require_vae(self, part: str) -> AutoencoderKLWan:
        if part not in self.parts:
            raise ValueError(self._missing(part))
        assert self.vae is not None
        return self.vae

    def _missing(self, part: str) -> str:
        how = f"load_parts({part!r})" if self._source else f"CosmosPredict2(config, parts=(..., {part!r}))"
        return f"This world model has no {part} in memory (it holds: {', '.join(self.parts) or 'nothing'}); call {how}."

    @property
    def expects_repeats(self) -> bool:
        return self._fast.expects_repeats

    @expects_repeats.setter
    def expects_repeats(self, value: bool) -> None:
        self._fast.expects_repeats = value

    # -- pixels and latents -------------------------------------------------------------------------------------------

    def encode(self, frames: Tensor) -> Tensor:
        """Frames to normalised latents, (mean - latents_mean) / latents_std.

        Args:
            frames: (n, 3, F, H, W), float in [-1, 1]; F = 1 + temporal_factor·k; H and W multiples of spatial_factor.

        Returns:
            (n, C, 1 + (F-1)//temporal_factor, h, w), float32; the mean and not a sample, so that they
                depend on the image alone.

        Raises:
            ValueError: if there is no encoder in memory, or frames have another dtype, range or shape.
        """
        vae = self._require_vae("encoder")
        check_frames(frames, self.temporal_factor, self.spatial_factor)
        if (fast := self._fast.encode(self.fast_path, vae, frames)) is not None:
            return fast
        mean = vae.encode(frames.to(vae.quant_conv.weight)).latent_dist.mean.float()
        center, scale = self._normalisation(vae, mean)
        return (mean - center) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (n, C, T, h, w) to frames (n, 3, 1 + temporal_factor·(T-1), H, W), float32 in [-1, 1].

        Raises:
            ValueError: if there is no decoder in memory, or latents have another shape.
        """
        vae = self._require_vae("decoder")
        check_latents(latents, self.latent_channels)
        center, scale = self._normalisation(vae, latents.float())
        raw = latents.float() * scale + center
        frames: Tensor = vae.decode(raw.to(vae.post_quant_conv.weight), return_dict=False)[0]
        return frames.float().clamp(-1, 1)

    @staticmethod
    def _normalisation(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(values) for values in (vae.config.latents_mean, vae.config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)  # each (1, C, 1, 1, 1)

    # -- the future ---------------------------------------------------------------------------------------------------

    def rollout(
        self,
        latents: Tensor,
        num_world_steps: int,
        *,
        seeds: Sequence[int],
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Imagines `num_world_steps` latent frames after the given ones, denoised jointly.

        The imagined frames carry no gradients; the given frames in the result do.

        Args:
            latents: (n, C, P + 1, h, w), normalised; the last one is now. The result contains them unchanged.
            num_world_steps: N, latent frames to imagine; 0 returns `latents` without a transformer.
            seeds: one integer per sample. The noise is drawn on the CPU for each sample, so that a result depends
                neither on the batch nor on the device.
            prompt_embeds, negative_prompt_embeds: (L, D) for all samples or (n, L, D); default the model's own.
            num_inference_steps: points of the noise schedule, at least 2; default the config's. The last Euler step has
                length zero, so the transformer runs once less.
            guidance_scale: w of x + w·(x - x_negative), as in diffusers' Cosmos pipeline; 1 or less disables it.
            guidance_interval: (start, end), the part of the schedule that is guided, as shares from 0 to 1: pass i of k
                (from 0) if start·k <= i < end·k. Default the config's; (0, 1) is all of it.
            progress: called with (transformer passes done, passes in all).

        Returns:
            (n, C, P + 1 + N, h, w), float32.

        Raises:
            ValueError: if there is no transformer or prompt, there are too few steps, or a shape is wrong.
        """
        check_latents(latents, self.latent_channels)
        if isinstance(num_world_steps, bool) or not isinstance(num_world_steps, int) or num_world_steps < 0:
            raise ValueError(f"num_world_steps is {num_world_steps!r}; it must be an integer, 0 or more.")
        if len(seeds) != latents.shape[0]:
            raise ValueError(f"Got {len(seeds)} seeds for {latents.shape[0]} samples; pass one seed per sample.")
        if num_world_steps == 0:
            return latents
        if self.transformer is None:
            raise ValueError(self._missing("transformer"))
        check_grid(latents, num_world_steps, self.transformer)
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 2:
            raise ValueError(f"num_inference_steps is {steps}; it must be 2 or more, since one step returns noise.")
        guidance = self.config.guidance_scale if guidance_scale is None else guidance_scale
        interval = self.config.guidance_interval if guidance_interval is None else check_interval(guidance_interval)

        prompts = {"prompt_embeds": self.prompt_embeds if prompt_embeds is None else prompt_embeds}
        if guidance > 1:
            negative = self.negative_prompt_embeds if negative_prompt_embeds is None else negative_prompt_embeds
            prompts["negative_prompt_embeds"] = negative
        texts = [self._text(name, embeds, latents.shape[0]) for name, embeds in prompts.items()]
        rows = max(map(len, texts))  # 1 where all samples share the prompts
        text = torch.stack([embeds.expand(rows, -1, -1) for embeds in texts])
        noise = rollout_noise(seeds, num_world_steps, (latents.shape[1], latents.shape[3], latents.shape[4]))
        sigma_max = self.config.scheduler.get("sigma_max", COSMOS_SCHEDULER["sigma_max"])
        given = latents.float()
        future = self._fast.denoise(
            self.fast_path,
            self.transformer,
            given.detach(),
            noise.to(given.device) * sigma_max,
            text,
            sigmas=noise_schedule(self.config, steps),
            sigma_conditioning=self.config.sigma_conditioning,
            guidance_scale=guidance,
            guidance_interval=interval,
            fps=self.config.fps,
            progress=progress,
        )
        return torch.cat([given, future], dim=2)

    # -- prompts ------------------------------------------------------------------------------------------------------

    @property
    def needs_guardrail(self) -> bool:
        """Whether NVIDIA's guardrail must check users' prompts and the frames that people see.

        This holds for weights from any repository of NVIDIA's, and for any folder unless its
        `rollout_config.json` has `"weights_from": "own"`, as nano's has. Saving keeps that entry, so weights that were
        fine-tuned from NVIDIA's stay NVIDIA's.
        """
        source = "" if self._source is None else self._source[0]
        return source.lower().startswith("nvidia/") or self.config.weights_from != "own"

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """(L, D) of a prompt embedding."""
        width = self.config.transformer.get("text_embed_dim", COSMOS_2B_TRANSFORMER["text_embed_dim"])
        return self.config.text_tokens, int(width)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeds prompts as (n, L, D) with the model's text encoder, or from the cache of its results.

        An empty prompt is the model's default. All others are checked by the guardrail first if the weights need it.

        Raises:
            ValueError: if there is no text encoder, the guardrail is needed and not installed, or a prompt is refused
                or too long.
        """
        written = list(dict.fromkeys(prompt for prompt in prompts if prompt))
        if written:
            self.check_takes_prompts()
        if self.needs_guardrail:
            for prompt in written:
                guardrail.check_prompt(prompt, self._device())
        new = [prompt for prompt in written if prompt not in self._recent]
        known = {prompt: self._recent[prompt] for prompt in written if prompt not in new} | self._embed(new)
        self._recent = dict([*self._recent.items(), *((prompt, known[prompt]) for prompt in new)][-RECENT_PROMPTS:])
        assert self.prompt_embeds is not None
        known[""] = self.prompt_embeds.cpu()
        return torch.stack([known[prompt].float() for prompt in prompts])

    def check_takes_prompts(self) -> None:
        if not self._has_text_encoder:
            raise ValueError(
                "This world model has no text encoder, so it cannot take a world prompt; omit the prompt, or use a "
                "Cosmos-Predict2 repository, which has one."
            )
        self.require_guardrail()

    def _embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embeds `prompts` and, if they are missing, the default ones, so that the text encoder is loaded once."""
        if self.transformer is None:
            raise ValueError(self._missing("transformer"))
        complete = self.prompt_embeds is not None and self.negative_prompt_embeds is not None
        if not complete and not self._has_text_encoder:
            raise ValueError(self._no_prompt("prompt_embeds"))
        wanted = [*prompts, *(() if complete else (DEFAULT_PROMPT, DEFAULT_NEGATIVE_PROMPT))]
        if not wanted:
            return {}
        assert self._source is not None
        name, revision, _ = self._source
        known = dict(zip(wanted, embed_prompts(name, revision, wanted, self.prompt_shape, self._device()), strict=True))
        if not complete:
            defaults = {"default": known[DEFAULT_PROMPT], "negative": known[DEFAULT_NEGATIVE_PROMPT]}
            self.keep_prompts(defaults, "the text encoder")
        return known

    @cached_property  # a repository is queried once
    def _has_text_encoder(self) -> bool:
        return self._source is not None and has_text_encoder(*self._source[:2])

    def _device(self) -> torch.device:
        return self._runs_on or (next(self.parameters()).device if self.parts else torch.device("cpu"))

    def load_default_prompts(self) -> None:
        """Embeds the default and the negative prompt, once, if the model was loaded without their embeddings.

        The default prompt is empty, so that the image alone determines the future. The negative one is that of the
        published Cosmos-Predict2. See `theworld.world_models.prompts`.

        Raises:
            ValueError: if there is no transformer in memory, or no text encoder.
        """
        self._embed(())

    @property
    def embedded_prompts(self) -> dict[str, Tensor]:
        return self._embedded

    def keep_prompts(self, prompts: Mapping[str, Tensor], where: str) -> None:
        self._embedded = dict(self._check_prompts(prompts, where))
        if self.transformer is not None and self.prompt_embeds is None:
            self._set_prompts(self._embedded)

    def _check_prompts(self, prompts: Mapping[str, Tensor], where: str | Path) -> Mapping[str, Tensor]:
        check_names(("default", "negative"), prompts, f"{where} does not match this world model")
        for key, embeds in prompts.items():
            if tuple(embeds.shape) != self.prompt_shape:
                raise ValueError(f"{where}: {key} is {tuple(embeds.shape)} and must be {self.prompt_shape}.")
        return prompts

    def _set_prompts(self, prompts: Mapping[str, Tensor]) -> None:
        for name, key in (("prompt_embeds", "default"), ("negative_prompt_embeds", "negative")):
            setattr(self, name, prompts[key].to(self._device()) if prompts else None)

    def _text(self, name: str, embeds: Tensor | None, n: int) -> Tensor:
        """Prompt embeddings, (L, D) or (n, L, D), as (1, L, D) or (n, L, D) on the transformer's device."""
        if embeds is None:
            raise ValueError(self._no_prompt(name))
        shape = self.prompt_shape
        if tuple(embeds.shape) not in (shape, (n, *shape)):
            raise ValueError(f"{name} has shape {tuple(embeds.shape)}; it must be {shape} or {(n, *shape)}.")
        embeds = embeds.to(self._device(), torch.float32)
        return embeds.view(-1, *shape)

    def _no_prompt(self, name: str) -> str:
        return (
            f"This world model has no {PROMPT_EMBEDS}, like the published Cosmos-Predict2 repositories: pass {name} to "
            "rollout, call load_default_prompts() if there is a text encoder, or add that file to its folder (keys "
            f"'default' and 'negative', each a T5 embedding of a prompt, {self.prompt_shape})."
        )

    # -- folders ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        parts: Sequence[str] = WORLD_PARTS,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        config: CosmosPredict2Config | None = None,
        device: str | torch.device = "cpu",
        quantization: BitsAndBytesConfig | None = None,
        offload: str = "none",
    ) -> CosmosPredict2:
        """Reads a folder in diffusers' layout, local or on Hugging Face: only the tensors of `parts`, all of them.

        Args:
            repo_or_folder: `vae/`, `transformer/`, `scheduler/`, and of our own `prompt_embeds.safetensors` and
                `rollout_config.json` where there are any.
            dtype: dtype to cast the weights to; None keeps the stored one.
            config: its configuration, if `read_config` has read it already.
            device: where the weights are read to.
            quantization: of the linear layers in the transformer's blocks.
            offload: "cpu" keeps the transformer in CPU memory, from which each block is copied when it runs.

        Returns:
            The model in eval mode, on `device`.

        Raises:
            ValueError: if a folder, repository or file is missing, gated or damaged, or a tensor is missing,
                unexpected or of another shape.
        """
        parts = check_parts(parts)
        folder = find_folder(repo_or_folder, revision, file_patterns(parts))
        model = cls(config or read_config(folder), parts=())
        model._source = (str(repo_or_folder), revision, dtype)
        model._quantization = quantization
        model._runs_on = torch.device(device) if offload == "cpu" else None
        model._load(folder, parts, dtype, torch.device(device))
        return model.eval()

    @classmethod
    def read_config(
        cls, repo_or_folder: str | Path, revision: str | None = None, *, local_files_only: bool = False
    ) -> CosmosPredict2Config:
        """The config of a world folder or repository, without its weights.

        Raises:
            ValueError: see `from_pretrained`.
        """
        return read_config(find_folder(repo_or_folder, revision, file_patterns(()), local_files_only))

    def load_parts(self, *parts: str) -> None:
        """Loads the named parts that are not in memory yet, frozen, on this model's device.

        Raises:
            ValueError: if a part is unknown, or the model was not loaded by `from_pretrained`.
        """
        wanted = tuple(part for part in check_parts(parts) if part not in self.parts)
        if not wanted:
            return
        if self._source is None:
            raise ValueError(
                f"This world model was built from a config, so there is no folder to load {wanted[0]} from; build it "
                f"with CosmosPredict2(config, parts=...), or use from_pretrained."
            )
        name, revision, dtype = self._source
        self._load(find_folder(name, revision, file_patterns(wanted)), wanted, dtype, self._device())
        prefixes = tuple(prefix for part in wanted for prefix in PART_PREFIXES[part])
        for key, parameter in self.named_parameters():
            if key.startswith(prefixes):
                parameter.requires_grad_(False)

    def _load(self, folder: Path, parts: tuple[str, ...], dtype: torch.dtype | None, device: torch.device) -> None:
        """Loads `parts` from `folder`; the model does not change unless all of them could be read."""
        vae = transformer = None
        prompts: dict[str, Tensor] = {}
        if "encoder" in parts or "decoder" in parts:
            prefixes = [prefix.removeprefix("vae.") for part in parts for prefix in PART_PREFIXES[part]]
            vae = read_vae(folder / "vae", self.config, prefixes, dtype, device)
        if "transformer" in parts:
            placed = (dtype, device, self._quantization, self._runs_on is not None)
            transformer = read_transformer(folder / "transformer", self.config, *placed)
            if (folder / PROMPT_EMBEDS).is_file():
                prompts = dict(self._check_prompts(read_tensors(str(folder), PROMPT_EMBEDS), folder / PROMPT_EMBEDS))
        if vae is not None:
            self._take_vae(vae, parts)
        if transformer is not None:
            self.transformer = transformer
            self._set_prompts(prompts or self._embedded)
        assert device.type == "meta" or not any(tensor.is_meta for tensor in self.state_dict().values())

    def _take_vae(self, loaded: AutoencoderKLWan, parts: tuple[str, ...]) -> None:
        """Takes over the halves of `loaded` named in `parts`, and keeps a half that is in memory already."""
        halves = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv")}
        for name in (name for part, names in halves.items() if part not in parts for name in names):
            setattr(loaded, name, getattr(self.vae, name, None))
        self.vae = loaded

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Writes a folder that `from_pretrained` and diffusers' own component loaders read.

        Args:
            max_shard_size: maximum size of a weights file, in bytes or as "16MB" (16·10^6 bytes).

        Raises:
            ValueError: if a part is not in memory.
        """
        for part in WORLD_PARTS:
            if part not in self.parts:
                raise ValueError(f"A world folder contains every part. {self._missing(part)}")
        assert self.vae is not None
        assert self.transformer is not None
        with atomic_folder(folder, stale=(PROMPT_EMBEDS,)) as staged:
            self.vae.save_pretrained(staged / "vae", max_shard_size=max_shard_size)
            self.transformer.save_pretrained(staged / "transformer", max_shard_size=max_shard_size)
            new_scheduler(self.config).save_pretrained(staged / "scheduler")
            if self.prompt_embeds is not None and self.negative_prompt_embeds is not None:
                embeds = {"default": self.prompt_embeds, "negative": self.negative_prompt_embeds}
                write_tensors(staged / PROMPT_EMBEDS, embeds)
            write_json(staged / ROLLOUT_CONFIG, {field: getattr(self.config, field) for field in ROLLOUT_FIELDS})
            write_json(staged / "model_index.json", MODEL_INDEX)
