"""The interface of world models.

Shapes: n images or videos, F pixel frames of H×W, T latent frames of C channels and h×w cells: P before now, now, and N
imagined ones. F = 1 + temporal_factor·(T − 1): the first frame has a latent frame of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from theworld.fast_path import check_fast_path
from theworld.media.images import to_pixels
from theworld.messages import Progress
from theworld.storage.adapters import read_tensors
from theworld.storage.hub import find_optional_file
from theworld.world_models import guardrail

PROMPT_EMBEDS = "prompt_embeds.safetensors"  # default prompts: keys "default" and "negative", each (L, D)
WORLD_PARTS = ("encoder", "decoder", "transformer")


def check_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """Returns `parts` in the order of WORLD_PARTS, without duplicates.

    Raises:
        ValueError: if a name is not a part, or `parts` is a string.
    """
    if isinstance(parts, str):
        raise ValueError(f"parts is the string {parts!r}; pass a tuple, such as ({parts!r},).")
    unknown = [part for part in parts if part not in WORLD_PARTS]
    if unknown:
        raise ValueError(f"There is no part {unknown[0]!r} of a world model; the parts are {', '.join(WORLD_PARTS)}.")
    return tuple(part for part in WORLD_PARTS if part in parts)


class WorldModel(nn.Module, ABC):
    """Encodes pixels to latents, imagines later latents, and decodes latents to pixels.

    All latents are float32 and normalised. Only the requested parts are in memory: `encoder` for `encode`,
    `transformer` for `rollout`, `decoder` for `decode`. Using a part that is not loaded raises a ValueError that names
    the call to load it.

    Attributes:
        expects_repeats: set by callers that are about to make many requests of the same shape.
    """

    config: PreTrainedConfig
    expects_repeats: bool = False
    _fast_path: str = "auto"

    @property
    def fast_path(self) -> str:
        """Whether `encode` and `rollout` may be compiled and captured as CUDA graphs: "auto", "on" or "off".

        "auto" does so on a CUDA device from the second request of a shape, or from the first one while
        `expects_repeats` is True; see `theworld.fast_path`.
        """
        return self._fast_path

    @fast_path.setter
    def fast_path(self, value: str) -> None:
        self._fast_path = check_fast_path(value)

    @classmethod
    @abstractmethod
    def read_config(
        cls, repo_or_folder: str | Path, revision: str | None = None, *, local_files_only: bool = False
    ) -> PreTrainedConfig:
        """Reads the config of a folder or Hugging Face repository, without its weights."""

    @classmethod
    @abstractmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        parts: Sequence[str] = WORLD_PARTS,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        config: PreTrainedConfig | None = None,
        device: str | torch.device = "cpu",
        quantization: BitsAndBytesConfig | None = None,
        offload: str = "none",
    ) -> WorldModel:
        """Reads exactly the tensors of `parts` from a folder or Hugging Face repository, straight to `device`."""

    @property
    def latent_channels(self) -> int:
        """C, channels of a latent."""
        return int(self.config.latent_channels)

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame after the first."""
        return int(self.config.temporal_factor)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return int(self.config.spatial_factor)

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The parts in memory, in the order of WORLD_PARTS."""

    @abstractmethod
    def load_parts(self, *parts: str) -> None:
        """Loads those of the parts that are not in memory yet, frozen, from the folder or repository of this model."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Writes a folder that the class's `from_pretrained` reads."""

    @property
    @abstractmethod
    def needs_guardrail(self) -> bool:
        """Whether the licence of these weights requires checks of users' prompts and of frames that people see."""

    def require_guardrail(self) -> None:
        """Raises a ValueError if these weights need the guardrail and it is not installed; loads nothing."""
        if self.needs_guardrail:
            guardrail.require_installed()

    def decode_for_display(self, latents: Tensor) -> np.ndarray:
        """Latents (n, C, T, h, w) as frames (n, F, H, W, 3) uint8 that may be shown to people.

        Raises:
            ValueError: if the guardrail is needed and is not installed, or refuses the frames.
        """
        self.require_guardrail()
        frames = to_pixels(self.decode(latents))
        return guardrail.check_frames(frames, latents.device) if self.needs_guardrail else frames

    def read_kept_prompts(self, model: str, subfolder: str = "", revision: str | None = None) -> None:
        """Restores the default prompts (`embedded_prompts`) that were saved with an adapter, if it has any.

        Args:
            model: folder or Hub id of the adapter.
            subfolder: of a checkpoint in it, ending with a slash, or empty.
        """
        file = find_optional_file(model, f"{subfolder}{PROMPT_EMBEDS}", revision)
        if file is not None:
            self.keep_prompts(read_tensors(str(file.parent), file.name), str(file))

    @abstractmethod
    def check_takes_prompts(self) -> None:
        """Raises a ValueError if `embed_prompts` needs something that is not available; loads nothing."""

    @abstractmethod
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeds prompts as (n, L, D) for `rollout`; an empty prompt means the model's default."""

    @abstractmethod
    def load_default_prompts(self) -> None:
        """Provides the default prompt embeddings of `rollout` if the model was loaded without them."""

    @property
    @abstractmethod
    def embedded_prompts(self) -> dict[str, Tensor]:
        """Default prompt embeddings that the model's own folder lacks, to be saved with an adapter."""

    @abstractmethod
    def keep_prompts(self, prompts: Mapping[str, Tensor], where: str) -> None:
        """Restores previously saved `embedded_prompts`; `where` names their file in errors."""

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames (n, 3, F, H, W), float in [-1, 1], as mean latents (n, C, 1 + (F-1)//temporal_factor, h, w).

        It is deterministic, and carries gradients to the encoder if the caller's grad mode is on.
        """

    @abstractmethod
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
        progress: Progress | None = None,
    ) -> Tensor:
        """Appends `num_world_steps` imagined latent frames to the given latents (n, C, P + 1, h, w)."""

    def imagine(
        self,
        frames: Tensor,
        num_world_steps: int,
        *,
        seeds: Sequence[int],
        prompts: Sequence[str] = (),
        latents: Tensor | None = None,
        **rollout: Any,
    ) -> Tensor:
        """Encodes frames and, if `num_world_steps` is above 0, imagines what follows: `encode`, then `rollout`.

        Args:
            frames: (n, 3, F, H, W), float in [-1, 1], in order of time; the last one is now.
            num_world_steps: N, latent frames to imagine.
            seeds: one integer per sample, for the noise of its rollout.
            prompts: one text per sample that describes its future; an empty text is the model's default. An empty
                sequence means the default for all samples.
            latents: those of the frames, if they are known already; they are not encoded again then.
            rollout: further arguments of `rollout`.

        Returns:
            (n, C, 1 + (F-1)/temporal_factor + N, h, w) normalised latents; the first ones are those of `frames`.
        """
        latents = self.encode(frames) if latents is None else latents
        if num_world_steps == 0:
            return latents
        if any(prompts):
            rollout["prompt_embeds"] = self.embed_prompts(prompts)
        elif rollout.get("prompt_embeds") is None:
            self.load_default_prompts()
        return self.rollout(latents, num_world_steps, seeds=seeds, **rollout)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents (n, C, T, h, w) to frames (n, 3, 1 + temporal_factor·(T-1), H, W), float32 in [-1, 1]."""
