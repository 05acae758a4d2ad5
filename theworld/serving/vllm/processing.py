"""From a chat with images to what the engine computes with: prompt ids with placeholders, and pixels for each image.

vLLM tokenises a chat in which each image is one `<start_of_image>`. Here that token is replaced by Gemma's image block
and, where the image has them, the world placeholders, so that the ids are those of `TheWorldProcessor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataParser
from vllm.multimodal.processing import BaseDummyInputsBuilder, PromptReplacement, PromptUpdateDetails
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PlaceholderFeaturesInfo,
)

from theworld.media.images import load_image
from theworld.model.call_plan import check_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import TheWorldProcessor, content_seed
from theworld.serving.vllm.blocks import NO_WORLD, ImageBlocks

OPTIONS = ("num_world_steps", "seed", "enable_world", "world_images")


@dataclass(frozen=True)
class PlacedImage:
    """One image of a prompt, and its place among them."""

    image: Any
    place: int


class PlacedImages(ImageProcessorItems):
    """The images of one prompt; each knows its place, which says whether it has world tokens."""

    def get_processor_data(self) -> Mapping[str, object]:
        return {"images": self.get_all()}

    def get(self, index: int) -> PlacedImage:
        item = self.data[index]
        return item if isinstance(item, PlacedImage) else PlacedImage(self._unwrap(item), index)


class Parser(MultiModalDataParser):
    """vLLM's parser, which also takes the images that it has given out."""

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, list) and any(isinstance(item, PlacedImage) for item in data):
            return PlacedImages(data)
        items = super()._parse_image_data(data)
        return PlacedImages(items.data) if isinstance(items, ImageProcessorItems) else items


@dataclass(frozen=True)
class Rollout:
    """The options of one request.

    Attributes:
        num_world_steps: N, or NO_WORLD without world tokens.
        seed: another value gives another future of the same image.
        every_image: whether all images have world tokens, or the first one alone.
    """

    num_world_steps: int
    seed: int
    every_image: bool

    def steps_of(self, place: int) -> int:
        """N of the image at `place` in its prompt, or NO_WORLD."""
        return self.num_world_steps if self.every_image or place == 0 else NO_WORLD


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about images and prompts of a fused model."""

    @cached_property
    def config(self) -> TheWorldConfig:
        return self.ctx.get_hf_config(TheWorldConfig)

    @cached_property
    def processor(self) -> TheWorldProcessor:
        model = self.ctx.model_config
        return TheWorldProcessor.from_pretrained(model.model, revision=model.revision)

    def get_hf_processor(self, **kwargs: object) -> TheWorldProcessor:
        return self.processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_data_parser(self) -> MultiModalDataParser:
        return Parser()

    def rollout(self, options: Mapping[str, Any]) -> Rollout:
        """The options of a request, `mm_processor_kwargs` over vLLM's API, with the server's own as defaults.

        Raises:
            ValueError: for an option that does not exist, or a value that the model does not take.
        """
        given = self.ctx.get_merged_mm_kwargs(options)
        if unknown := [name for name in given if name not in OPTIONS]:
            raise ValueError(f"{unknown[0]} is no option in vLLM; mm_processor_kwargs takes {', '.join(OPTIONS)}.")
        seed, enable_world = given.get("seed", 0), given.get("enable_world")
        check_call(seed, enable_world)
        steps = given.get("num_world_steps")
        steps = self.config.check_world_steps(self.config.num_world_steps if steps is None else steps)
        which = self.config.check_world_images(given.get("world_images") or self.config.world_images)
        return Rollout(NO_WORLD if enable_world is False else steps, seed, which == "all")


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """Prompts of the largest images, for vLLM to measure memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.processor.boi_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Mapping[str, Any]:
        side = self.info.config.world_image_size
        return {
            "image": self._get_dummy_images(
                width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
            )
        }


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Turns images into tensors for the engine, and their tokens into placeholders."""

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        most = {"num_world_steps": self.info.config.max_world_steps, "world_images": "all"}
        return ProcessorInputs(inputs.prompt, inputs.mm_data_items, hf_processor_mm_kwargs=most)

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        """Names of the images in caches; one that has no world tokens here may have them in another prompt."""
        rollout = self.info.rollout(inputs.hf_processor_mm_kwargs)
        images = super()._get_mm_hashes(inputs)["image"]
        return {"image": [f"{name}-{rollout.steps_of(place)}" for place, name in enumerate(images)]}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        """Pixels for Gemma, (n, 3, H, W) float, and for the world model, (n, 1, S, S, 3) uint8, with seeds and N."""
        if "image" not in mm_items:
            return BatchFeature({})
        rollout, processor = self.info.rollout(hf_kwargs), self.info.processor
        placed = mm_items["image"].get_all()
        images = [load_image(each.image) for each in placed]
        pixels = processor.image_processor(images, do_pan_and_scan=False, return_tensors="pt")["pixel_values"]
        seen = processor.world_pixels(images)
        steps = [rollout.steps_of(each.place) for each in placed]
        seeds = [content_seed(clip, seed=rollout.seed) for clip in seen]
        return BatchFeature(
            {
                "pixel_values": pixels.to(self.info.ctx.model_config.dtype),
                "world_pixels": torch.from_numpy(seen),
                "world_seeds": torch.tensor(seeds, dtype=torch.int64),
                "num_world_steps": torch.tensor(steps, dtype=torch.int64),
            }
        )

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        return {name: MultiModalFieldConfig.batched("image", keep_on_cpu=name != "pixel_values") for name in hf_inputs}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        steps = [int(item["num_world_steps"].data) for item in out_mm_kwargs.get("image", [])]
        return [
            PromptReplacement(
                "image",
                [self.blocks.start],
                lambda index: PromptUpdateDetails.select_token_ids(self.blocks.of(steps[index]), self.blocks.embedded),
            )
        ]

    @cached_property
    def blocks(self) -> ImageBlocks:
        return ImageBlocks(self.info.get_tokenizer(), self.info.processor)

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        """Replaces image tokens; newlines around a block merge with those of the text, as vLLM's own way would not."""
        contents = [update.content for (update,) in mm_prompt_updates.get("image", [])]
        ids, places = self.blocks.expand(token_ids, [content.full for content in contents])
        found = [
            PlaceholderFeaturesInfo("image", number, place, content.full, content.is_embed(content.full))
            for number, (place, content) in enumerate(zip(places, contents, strict=False))
        ]
        return ids, {"image": found} if found else {}
