"""Runs the world model of a fused model, and loads those of its parts that a call needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theworld.media.images import to_frames, to_pixels
from theworld.media.inputs import ImageOrVideo
from theworld.messages import Progress
from theworld.model.call_plan import NO_WORLD_MODEL, world_parts_for
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.world_models.base import WorldModel
from theworld.world_models.cosmos_checks import check_latents

logger = logging.getLogger(__name__)


@cache
def warn_once(text: str) -> None:
    """Logs a warning the first time that it occurs in this process."""
    logger.warning(text)


class WorldRunner:
    """Imagines, encodes and decodes with the world model of `model`, whose processor is `processor`.

    `note_on_steps` returns what to log about a number of world steps, once, or None.
    """

    def __init__(
        self,
        model: TheWorldForConditionalGeneration,
        processor: TheWorldProcessor,
        note_on_steps: Callable[[int], str | None],
    ) -> None:
        self.model = model
        self.processor = processor
        self.note_on_steps = cache(note_on_steps)

    @property
    def world(self) -> WorldModel:
        """The world model; a ValueError if there is none."""
        if self.model.world is None:
            raise ValueError(NO_WORLD_MODEL)
        return self.model.world

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def load_parts(self, *parts: str) -> None:
        """Loads those of the parts that are not in memory yet."""
        missing = [part for part in parts if part not in self.world.parts]
        if missing:
            logger.info("loading the world model's %s", " and ".join(missing))
            self.world.load_parts(*missing)

    def imagine(
        self,
        images: Sequence[ImageOrVideo],
        num_world_steps: int,
        seed: int,
        world_prompt: str | Sequence[str] | None,
        progress: Progress | None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Latents (n, C, P + 1 + N, h, w) of images or videos and of what follows them.

        Args:
            present: the first P + 1 of each, if they are known already.
        """
        inputs = self.processor.world_inputs(images, num_world_steps, seed, world_prompt)
        return self.imagine_from(inputs, num_world_steps, progress, present)

    def imagine_futures(
        self,
        images: Sequence[ImageOrVideo],
        num_world_steps: int,
        seed: int,
        futures: int,
        world_prompt: str | Sequence[str] | None,
        progress: Progress | None,
    ) -> Tensor:
        """Latents (futures · n, C, P + 1 + N, h, w), imagined in one batch: all images with `seed`, then with the next.

        The images are encoded once.
        """
        if futures == 1 or num_world_steps == 0:
            return self.imagine(images, num_world_steps, seed, world_prompt, progress)
        each = [self.processor.world_inputs(images, num_world_steps, seed + k, world_prompt) for k in range(futures)]
        inputs: dict[str, Any] = {
            "world_frames": each[0]["world_frames"].repeat(futures, 1, 1, 1, 1),
            "world_seeds": torch.cat([one["world_seeds"] for one in each]),
        }
        if "world_prompt" in each[0]:
            self.world.check_takes_prompts()  # before anything is encoded
            inputs["world_prompt"] = each[0].pop("world_prompt") * futures
        present = self.imagine_from(each[0], 0, None)
        return self.imagine_from(inputs, num_world_steps, progress, present.repeat(futures, 1, 1, 1, 1))

    @torch.no_grad()
    def imagine_from(
        self, inputs: dict[str, Any], num_world_steps: int, progress: Progress | None, present: Tensor | None = None
    ) -> Tensor:
        """`imagine` from the processor's `world_frames`, `world_seeds` and, if there are any, `world_prompt`."""
        prompts = inputs.get("world_prompt")
        if prompts:
            self.world.check_takes_prompts()  # before the transformer is loaded
        if note := self.note_on_steps(num_world_steps):
            warn_once(note)
        self.load_parts(*world_parts_for(num_world_steps))
        frames, seeds = inputs["world_frames"].to(self.device), inputs["world_seeds"].tolist()
        latents = None if present is None else present.to(self.device)
        return self.model.world_latents_of(frames, num_world_steps, seeds, progress, prompts, latents=latents)

    @torch.no_grad()
    def encode(self, clip: Sequence[Any]) -> Tensor:
        """Latents (1, C, T, h, w) of a clip of 1 + 4·(T - 1) frames."""
        self.load_parts("encoder")
        frames = to_frames([clip], self.model.config.world_image_size)
        return self.world.encode(frames.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, check_guardrail: bool) -> np.ndarray:
        """Frames (n, F, H, W, 3) uint8 of latents; those for people pass the guardrail if the weights need it."""
        check_latents(latents, self.world.latent_channels)
        if check_guardrail:
            self.world.require_guardrail()  # before the decoder is loaded
        self.load_parts("decoder")
        latents = latents.to(self.device)
        return self.world.decode_for_display(latents) if check_guardrail else to_pixels(self.world.decode(latents))
