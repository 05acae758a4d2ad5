"""Pictures, videos and a chat to model inputs: Gemma 3's processor, plus world placeholders, world frames and seeds.

World off, every tensor equals Gemma3Processor's. World on, the soft tokens of a picture are followed by
`world_token_count(N, P)` placeholders, and three inputs join: `world_frames`, `world_seeds` and `num_world_steps`. Of a
video Gemma sees the last frame, which is now, and the world model the last 1 + 4·P.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import BatchFeature
from transformers.models.gemma3 import Gemma3Processor

from theworld.media.images import Video, load_images, load_numbered, to_frames, to_pixels
from theworld.model.configuration import TheWorldConfig
from theworld.storage.hub import find_base_dir, resolve

WORLD_TOKEN = "<world_soft_token>"
ImageOrVideo: TypeAlias = Image.Image | Video  # what a question shows: a picture of now, or a video that ends now


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

    Calls take Gemma3Processor's arguments and five more: `num_world_steps` (default: the config's), `seed` (another
    future of the same picture), `enable_world` and `world_images` (default: the config's) and `world_prompt` (what
    happens, in words). Among the pictures may be videos, as `theworld.media.images.load_video` reads them.
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
        return cls.from_config(config, inside=find_base_dir(model, [config.vlm_name_or_path], revision))

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
        world_images: str | None = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Args:
            images: pictures in any form `theworld.media.images` takes, and `Video`s; a list for one text, a list of lists for
                a batch.
            text: prompts with one `<start_of_image>` a picture or video.
            num_world_steps: world steps to imagine; the config's when None.
            seed: another number gives another future of the same picture.
            enable_world: False gives Gemma3Processor's tensors and nothing else; of a video, those of its last frame.
            world_prompt: what the imagined future shows, one for all texts or one each; None or an empty one is the
                world model's default.
            world_images: `first` gives world tokens to the first picture of each text, `all` to each; the config's when
                None.
            videos: refused, since Gemma's chat template has no place for them: videos are among the `images`.

        Returns:
            Gemma's inputs and, with the world on, `world_frames` (n, 3, F, S, S) float32 in [-1, 1], `world_seeds` (n,)
            int64 and `num_world_steps` (n,) int64, one row a picture with a world block; F = 1 for pictures, and the
            last 1 + 4·P frames for videos. With a prompt, `world_prompt`, a list of n strings.

        Raises:
            ValueError: unreadable pictures, a number of world steps the model has no embedding for, a video whose past
                could not be read, videos of different P in one batch, or a world prompt where nothing is imagined.
        """
        if videos is not None:
            raise ValueError(
                "give a video among the pictures, read by theworld.media.images.load_video; in a chat, as "
                "{'type': 'image', 'image': load_video(…)}."
            )
        world_on = self.config.enable_world if enable_world is None else enable_world
        if any(prompts_each(world_prompt, None)) and (images is None or text is None or not world_on):
            raise ValueError(
                "a world prompt steers what is imagined of a picture, and here "
                f"{'the world is off' if not world_on else 'there is none'}; leave the prompt out."
            )
        if images is None:
            return super().__call__(images=None, text=text, **kwargs)
        pictures = group_images(images, text)
        now = [[picture.now if isinstance(picture, Video) else picture for picture in own] for own in pictures]
        if not world_on or text is None:
            return super().__call__(images=now, text=text, **kwargs)
        steps = self.config.check_world_steps(
            self.config.num_world_steps if num_world_steps is None else num_world_steps
        )
        texts = [text] if isinstance(text, str) else list(text)
        chosen = self.with_world(pictures, world_images)
        every = [picture for own in chosen for picture in own]
        block = self.boi_token + WORLD_TOKEN * self.config.world_token_count(steps, self.num_past_steps(every))
        # as many blocks as the prompt has pictures with one: all of them, or the first
        expanded = [prompt.replace(self.boi_token, block, len(own)) for prompt, own in zip(texts, chosen, strict=True)]
        inputs = super().__call__(images=now, text=expanded, **kwargs)
        prompts = prompts_each(world_prompt, len(texts))
        steering = [prompt for own, prompt in zip(chosen, prompts, strict=True) for _ in own]
        inputs.update(self.world_inputs(every, steps, seed, steering))
        return inputs

    def with_world(
        self, pictures: Sequence[Sequence[ImageOrVideo]], world_images: str | None = None
    ) -> list[list[ImageOrVideo]]:
        """The pictures and videos of each prompt that get world tokens.

        Raises:
            ValueError: another `world_images` than `first` and `all`, or a video that gets none, so that nothing would
                read its past.
        """
        which = self.config.check_world_images(self.config.world_images if world_images is None else world_images)
        if which == "all":
            return [list(own) for own in pictures]
        for own in pictures:
            for number, picture in enumerate(own[1:], start=2):
                if isinstance(picture, Video) and picture.num_frames > 1:
                    raise ValueError(
                        f"picture {number} of a question is a video, and with world_images 'first' nothing would read "
                        "its past; put the video first, or ask with world_images 'all'."
                    )
        return [list(own[:1]) for own in pictures]

    def num_past_steps(self, pictures: Sequence[ImageOrVideo]) -> int:
        """P of pictures and videos that are read in one batch; 0 for pictures.

        Raises:
            ValueError: the model reads no videos, one is too short to have a past, or they have not all the same P.
        """
        frames = [picture.num_frames if isinstance(picture, Video) else 1 for picture in pictures]
        steps = sorted({self.config.past_steps_of(number) for number in frames})
        if len(steps) > 1:
            read = " and ".join(str(self.config.num_pixel_frames(0, past)) for past in steps)
            raise ValueError(
                f"one batch reads as many frames of each picture or video (a picture is 1), and here they are {read}; "
                "group your questions by that number, or cut the videos to one length."
            )
        return steps[0] if steps else 0

    def frames_of(self, picture: ImageOrVideo) -> list[Image.Image]:
        """The frames that the world model reads: a picture, or the last 1 + 4·P of a video."""
        if not isinstance(picture, Video):
            return [picture]
        count = self.config.num_pixel_frames(0, self.config.past_steps_of(picture.num_frames))
        if len(picture.frames) < count:
            raise ValueError(
                f"the model reads the last {count} frames of a video, and {len(picture.frames)} of its "
                f"{picture.num_frames:,} were kept; load it with load_video(…, keep={count})."
            )
        return list(picture.frames[-count:])

    def world_inputs(
        self,
        pictures: Sequence[ImageOrVideo],
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
        self.num_past_steps(pictures)
        clips = [self.frames_of(picture) for picture in pictures]
        frames = to_frames(clips, self.config.world_image_size)  # (n, 3, F, S, S)
        pixels = to_pixels(frames)  # (n, F, S, S, 3)
        seeds = [content_seed(clip, prompt, seed) for clip, prompt in zip(pixels, prompts, strict=True)]
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


def group_images(images: Any, text: str | Sequence[str] | None) -> list[list[ImageOrVideo]]:
    """The loaded pictures and videos of each prompt, one list a prompt.

    Args:
        images: for one prompt a picture, a `Video` or a list of them; for several, one entry (or list) each. A batch in
            one tensor (B, C, H, W) or array (B, H, W, C) is a list of B. None: no pictures.
        text: one prompt or several; None counts as one, unless `images` is a list of lists.

    Raises:
        ValueError: unreadable pictures, or not one entry for each of several prompts.
    """
    nested = isinstance(images, (list, tuple)) and any(isinstance(own, (list, tuple)) for own in images)
    if text is None or isinstance(text, str):
        count = len(images) if nested and text is None else 1
    else:
        count = len(text)
    if images is None:
        return [[] for _ in range(count)]
    if count == 1 and not nested:
        return [_load_pictures(images)]
    entries = list(images) if isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) else [images]
    if len(entries) != count:
        raise ValueError(f"{len(entries)} pictures were given for {count} questions; give one entry (or list) each.")
    return [_load_pictures(own) for own in entries]


def _load_pictures(images: Any) -> list[ImageOrVideo]:
    """One prompt's pictures and videos, in whatever form they came."""
    if images is None:
        return []
    if isinstance(images, Video):
        return [images]
    if not isinstance(images, (list, tuple)):
        return list(load_images(images))
    pictures: list[ImageOrVideo] = []
    for number, picture in enumerate(images, start=1):
        pictures.append(picture if isinstance(picture, Video) else load_numbered(picture, number, len(images)))
    return pictures
