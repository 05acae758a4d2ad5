"""Pictures and a chat to model inputs: Gemma 3's own processor, plus world placeholders, world frames and seeds.

World off, every tensor equals Gemma3Processor's. World on, each picture's soft tokens are followed by
`world_token_count(N)` placeholders, and three inputs join: `world_frames`, `world_seeds` and `num_world_steps`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import BatchFeature
from transformers.models.gemma3 import Gemma3Processor

from theworld.checkpoints import bases_folder, resolve
from theworld.configuration import TheWorldConfig
from theworld.images import load_image, to_frames

WORLD_TOKEN = "<world_soft_token>"
Pictures = Sequence[Sequence[Image.Image]]


def content_seed(frames_FHWC: np.ndarray, world_prompt: str = "", seed: int = 0) -> int:
    """Seed of a rollout from what it shows: the same picture, prompt and `seed` give the same future in any batch.

    Args:
        frames_FHWC: (F, H, W, 3) uint8, as the world model sees them.
        world_prompt: the user's prompt for the future, if any.
        seed: the user's own number, for another future of the same picture.

    Returns:
        A number in [0, 2**63).
    """
    digest = hashlib.blake2b(frames_FHWC.tobytes(), digest_size=8)
    digest.update(repr((frames_FHWC.shape, world_prompt, seed)).encode())
    return int.from_bytes(digest.digest(), "big") >> 1


class TheWorldProcessor(Gemma3Processor):
    """Gemma 3's processor that also counts and fills world placeholders.

    Calls take Gemma3Processor's arguments and four more: `num_world_steps` (default: the config's), `seed` (another
    future of the same picture), `enable_world` (default: the config's) and `world_prompt` (what happens, in words).
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        image_seq_length: int = 256,
        config: TheWorldConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, image_seq_length=image_seq_length)
        self.config = config if config is not None else TheWorldConfig()
        self.base_name_or_path = self.config.vlm_name_or_path
        tokenizer.add_tokens([AddedToken(WORLD_TOKEN, special=True, normalized=False)], special_tokens=True)
        token_id = tokenizer.convert_tokens_to_ids(WORLD_TOKEN)
        if token_id != self.config.world_token_id:
            raise ValueError(
                f"the tokenizer gives {WORLD_TOKEN} the id {token_id}, but the model's world_token_id is "
                f"{self.config.world_token_id}; use the tokenizer of the base model."
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], revision: str | None = None, **kwargs: Any
    ) -> TheWorldProcessor:
        """Reads the model's config, then the tokenizer and image processor of its Gemma base."""
        model = resolve(pretrained_model_name_or_path)
        config = TheWorldConfig.from_pretrained(model, revision=revision)
        return cls.from_config(config, inside=bases_folder(model, [config.vlm_name_or_path], revision))

    @classmethod
    def from_config(cls, config: TheWorldConfig, inside: str | None = None) -> TheWorldProcessor:
        """The processor of a config whose Gemma base is a folder, a shipped model or a Hub id."""
        name_or_path = resolve(config.vlm_name_or_path, inside)
        try:
            base = Gemma3Processor.from_pretrained(name_or_path, revision=config.vlm_revision)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # what broken files lead to
            raise ValueError(
                f"The tokenizer or image processor of {name_or_path} is missing or broken; download or save it again."
            ) from error
        processor = cls(
            base.image_processor,
            base.tokenizer,
            chat_template=base.chat_template,
            image_seq_length=base.image_seq_length,
            config=config,
        )
        processor.base_name_or_path = name_or_path
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """Writes nothing: all that is ours is in the model's `config.json`, and Gemma's tokenizer is the base's."""
        return []

    def write_base(self, folder: str | os.PathLike[str]) -> None:
        """Writes Gemma's own processor, for a full export; the world placeholder stays out of the tokenizer files."""
        base = Gemma3Processor.from_pretrained(self.base_name_or_path, revision=self.config.vlm_revision)
        base.save_pretrained(folder)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        num_world_steps: int | None = None,
        seed: int = 0,
        enable_world: bool | None = None,
        world_prompt: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Args:
            images: pictures in any form `theworld.images` takes; a list for one text, a list of lists for a batch.
            text: prompts with one `<start_of_image>` a picture.
            num_world_steps: world steps to imagine; the config's when None.
            seed: another number gives another future of the same picture.
            enable_world: False gives Gemma3Processor's tensors and nothing else.
            world_prompt: what the imagined future shows, one for all texts or one each; None or an empty one is the
                world model's default.

        Returns:
            Gemma's inputs and, with the world on, `world_frames` (n, 3, 1, S, S) float32 in [-1, 1], `world_seeds` (n,)
            int64 and `num_world_steps` (n,) int64, one row a picture with a world block; with a prompt, `world_prompt`,
            a list of n strings.

        Raises:
            ValueError: unreadable pictures, a number of world steps the model has no embedding for, or a world prompt
                where nothing is imagined.
        """
        world_on = self.config.enable_world if enable_world is None else enable_world
        if any(prompts_each(world_prompt, None)) and (images is None or text is None or not world_on):
            raise ValueError(
                "a world prompt steers what is imagined of a picture, and here "
                f"{'the world is off' if not world_on else 'there is none'}; leave the prompt out."
            )
        if images is None:
            return super().__call__(images=None, text=text, **kwargs)
        pictures = nested_pictures(images, text)
        if not world_on or text is None:
            return super().__call__(images=pictures, text=text, **kwargs)
        steps = self.config.check_world_steps(
            self.config.num_world_steps if num_world_steps is None else num_world_steps
        )
        texts = [text] if isinstance(text, str) else list(text)
        block = self.boi_token + WORLD_TOKEN * self.config.world_token_count(steps)
        blocks = -1 if self.config.world_images == "all" else 1
        expanded = [prompt.replace(self.boi_token, block, blocks) for prompt in texts]
        inputs = super().__call__(images=pictures, text=expanded, **kwargs)
        prompts = prompts_each(world_prompt, len(texts))
        shown = [own if self.config.world_images == "all" else own[:1] for own in pictures]
        chosen = [picture for own in shown for picture in own]
        steering = [prompt for own, prompt in zip(shown, prompts, strict=True) for _ in own]
        inputs.update(self.world_inputs(chosen, steps, seed, steering))
        return inputs

    def world_inputs(
        self,
        pictures: Sequence[Any],
        num_world_steps: int,
        seed: int = 0,
        world_prompt: str | Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """What the world model needs of `pictures`: frames in [-1, 1], a seed from content and prompt, and the steps.

        Where there is a prompt, `world_prompt` holds one a picture; without any, the key is absent.
        """
        prompts = prompts_each(world_prompt, len(pictures))
        if any(prompts) and num_world_steps == 0:
            raise ValueError("a world prompt steers imagined steps, and num_world_steps is 0; ask for 1 or more.")
        frames = to_frames(pictures, self.config.world_image_size)  # (n, 3, 1, S, S)
        as_uint8 = ((frames + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
        seeds = [content_seed(frames, prompt, seed) for frames, prompt in zip(as_uint8, prompts, strict=True)]
        return {
            **({"world_prompt": prompts} if any(prompts) else {}),
            "world_frames": frames,
            "world_seeds": torch.tensor(seeds, dtype=torch.int64),
            "num_world_steps": torch.full((len(seeds),), num_world_steps, dtype=torch.int64),
        }

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "world_frames", "world_seeds", "num_world_steps"]


def prompts_each(world_prompt: str | Sequence[str] | None, count: int | None) -> list[str]:
    """A world prompt for each of `count` (None: as many as there are), without outer blanks; empty where none is."""
    if world_prompt is None or isinstance(world_prompt, str):
        return [(world_prompt or "").strip()] * (1 if count is None else count)
    prompts = [(prompt or "").strip() for prompt in world_prompt]
    if count is not None and len(prompts) != count:
        raise ValueError(f"{len(prompts)} world prompts were given for {count}; give one, or one each.")
    return prompts


def nested_pictures(images: Any, text: str | list[str] | None) -> list[list[Image.Image]]:
    """Pictures grouped by prompt: one list a prompt, whatever nesting they came in."""
    if not isinstance(images, (list, tuple)):
        return [[load_image(images)]]
    if images and isinstance(images[0], (list, tuple)):
        return [[load_image(picture) for picture in own] for own in images]
    loaded = [load_image(picture) for picture in images]
    if text is None or isinstance(text, str) or len(text) == 1:
        return [loaded]
    if len(loaded) != len(text):
        raise ValueError(f"{len(loaded)} pictures were given for {len(text)} prompts; nest them, one list a prompt.")
    return [[picture] for picture in loaded]
