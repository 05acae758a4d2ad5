"""From images, videos and a chat to model inputs: Gemma 3's processor, plus world placeholders, world frames and seeds.

With the world model disabled, every tensor equals Gemma3Processor's. With it enabled, the soft tokens of an image are
followed by `world_token_count(N, P)` placeholders, and three inputs are added: `world_frames`, `world_seeds` and
`num_world_steps`. For a video, Gemma receives the last frame (the present) and the world model the last 1 + 4·P frames.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from tokenizers.normalizers import Replace
from tokenizers.normalizers import Sequence as Normalizers
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.models.gemma3 import Gemma3Processor
from transformers.utils import IMAGE_PROCESSOR_NAME

from theworld.media.images import frames_of, stack_pixels
from theworld.media.inputs import ImageOrVideo, group_images
from theworld.media.video import Video
from theworld.messages import counted
from theworld.model.call_plan import check_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.spec import WORLD_TOKEN
from theworld.storage.hub import find_base_dir, resolve

# Two noncharacters of Unicode, which texts do not contain. Inside the name of a control token they hide it from the
# search for control tokens; the tokenizer removes them before it encodes the words.
HIDDEN = "\ufdd0\ufdd1"
NO_CHAT_TEMPLATE = (
    "{} has no chat template, neither in chat_template.jinja nor in tokenizer_config.json: add one, or use an "
    "instruction-tuned Gemma 3 such as google/gemma-3-4b-it."
)


def content_seed(frames_FHWC: np.ndarray, world_prompt: str = "", seed: int = 0) -> int:
    """The seed of a rollout, in [0, 2**63): equal frames, prompt and `seed` give the same future in any batch.

    `frames_FHWC` (F, H, W, 3) are uint8, as the world model sees them.
    """
    digest = hashlib.blake2b(frames_FHWC.tobytes(), digest_size=8)
    digest.update(repr((frames_FHWC.shape, world_prompt, seed)).encode())
    return int.from_bytes(digest.digest(), "big") >> 1


class TheWorldProcessor(Gemma3Processor):
    """Gemma 3's processor that also counts and fills world placeholders.

    Calls take Gemma3Processor's arguments and five more: `num_world_steps` (default: the config's), `seed` (another
    future of the same image), `enable_world` and `world_images` (default: the config's) and `world_prompt` (what
    happens, in words). The images may include videos, as `theworld.media.video.load_video` reads them, which are
    resampled to the world model's rate.
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
                f"The tokenizer gives {WORLD_TOKEN} the id {token_id}, but world_token_id is "
                f"{self.config.world_token_id} in the model's config: use the tokenizer that the model was trained "
                f"with, or world_token_id={token_id} for a new fusion."
            )
        self.control_tokens = control_tokens(tokenizer)
        backend = tokenizer.backend_tokenizer
        if backend.normalizer is None:
            backend.normalizer = Replace(HIDDEN, "")
        elif HIDDEN in backend.normalizer.normalize_str(HIDDEN):
            backend.normalizer = Normalizers([Replace(HIDDEN, ""), backend.normalizer])

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], revision: str | None = None, **kwargs: Any
    ) -> TheWorldProcessor:
        """Reads the model's config, then the tokenizer and image processor of its Gemma base.

        Further keywords (`padding_side`, `do_pan_and_scan`, …) are passed to both, as transformers' processors do.
        """
        kwargs.pop("trust_remote_code", None)  # AutoProcessor passes it; there is no remote code here
        model = resolve(pretrained_model_name_or_path)
        config = TheWorldConfig.from_pretrained(model, revision=revision)
        return cls.from_config(config, base_dir=find_base_dir(model, [config.vlm_name_or_path], revision), **kwargs)

    @classmethod
    def from_config(cls, config: TheWorldConfig, base_dir: str | None = None, **kwargs: Any) -> TheWorldProcessor:
        """Reads the processor for a config whose Gemma base is a folder, a shipped model or a Hub id."""
        name_or_path = resolve(config.vlm_name_or_path, base_dir)
        try:
            values, _ = Gemma3Processor.get_processor_dict(name_or_path, revision=config.vlm_revision)
            # The config and the file name are given, so that transformers does not open config.json to find them.
            tokenizer = AutoTokenizer.from_pretrained(
                name_or_path, revision=config.vlm_revision, config=config.vlm_config, **kwargs
            )
            image_processor = AutoImageProcessor.from_pretrained(
                name_or_path, revision=config.vlm_revision, image_processor_filename=IMAGE_PROCESSOR_NAME, **kwargs
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # what broken files raise
            raise ValueError(
                f"The tokenizer or image processor of {name_or_path} is missing or broken: download or save it again."
            ) from error
        processor = cls(
            image_processor,
            tokenizer,
            chat_template=values.get("chat_template") or tokenizer.chat_template,
            image_seq_length=values.get("image_seq_length", 256),
            config=config,
        )
        processor.base_name_or_path = name_or_path
        return processor

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Formats a chat (a list of turns), or a list of chats, as transformers does.

        Returns:
            The prompt as a string, or with `tokenize=True` its ids, in the form that the other arguments ask for.

        Raises:
            ValueError: if the base model has no chat template and none is given, or a turn is neither text nor a list
                of parts.
        """
        check_chat(conversation)
        if self.chat_template is None and kwargs.get("chat_template") is None:
            raise ValueError(NO_CHAT_TEMPLATE.format(self.base_name_or_path))
        return super().apply_chat_template(conversation, *args, **kwargs)

    def as_words(self, text: str) -> str:
        """What a person wrote, for a prompt: names of control tokens in it, such as `<end_of_turn>`, become words.

        The ids are those of `split_special_tokens=True`. Text without such names is returned unchanged.

        Raises:
            ValueError: if the text cannot be encoded as UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r} is not valid UTF-8 text.") from error
        return self.control_tokens.sub(HIDDEN, text)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """Writes nothing: our settings are in the model's `config.json`, and the tokenizer is the Gemma base's."""
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
        ids_only: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes prompts with their images and videos.

        Args:
            images: `LoadedImages`, or images in any form that `theworld.media.images` takes and `Video`s; a list for
                one text, a list of lists for a batch.
            text: prompts with one `<start_of_image>` per image or video.
            num_world_steps: world steps to imagine; None for the config's.
            seed: another value gives another future of the same image.
            enable_world: False gives Gemma3Processor's tensors and nothing else; of a video, those of its last frame.
            world_prompt: what the imagined future shows, one for all texts or one per text; None or an empty text is
                the world model's default.
            world_images: `first` gives world tokens to the first image of each text, `all` to every image; None for the
                config's.
            videos: refused, because Gemma's chat template has no place for them: videos are passed in `images`.
            ids_only: True leaves out pixels and world frames, for a caller that has image features and world latents.

        Returns:
            Gemma's inputs and, with the world model enabled, `world_frames` (n, 3, F, S, S) float32 in [-1, 1],
            `world_seeds` (n,) int64 and `num_world_steps` (n,) int64, one row per image with a world block; F = 1 for
            images, and the last 1 + 4·P frames for videos. With a prompt, also `world_prompt`, a list of n strings.

        Raises:
            ValueError: if an image cannot be read, if the model has no embedding for that number of world steps, if the
                past of a video would not be read, if the videos of a batch have different P, or if there is a world
                prompt and nothing is imagined.
        """
        texts = None if text is None else texts_of("text", text)
        if videos is not None:
            raise ValueError(
                "The processor takes videos in `images`, read by theworld.media.video.load_video: in a chat, write "
                "{'type': 'image', 'image': load_video(…)}."
            )
        check_call(seed, enable_world)
        world_on = self.config.enable_world if enable_world is None else enable_world
        if any(prompts_each(world_prompt, None)) and (images is None or text is None or not world_on):
            reason = "without an image" if world_on else "with the world model disabled"
            raise ValueError(f"A world prompt describes what is imagined, and {reason} nothing is: leave it out.")
        if images is None:
            return super().__call__(images=None, text=text, **kwargs)
        loaded = group_images(images, text if isinstance(text, str) else texts, self.config.read_video)
        now = [[image.now if isinstance(image, Video) else image for image in entry] for entry in loaded]
        if ids_only and texts is not None and not world_on:
            return self.token_ids(texts, **kwargs)
        if not world_on or texts is None:
            return super().__call__(images=now, text=text, **kwargs)
        steps = self.config.check_world_steps(
            self.config.num_world_steps if num_world_steps is None else num_world_steps
        )
        with_world = self.with_world(loaded, world_images)
        flat = [image for entry in with_world for image in entry]
        expanded = self.with_placeholders(texts, with_world, steps)
        if ids_only:
            return self.token_ids(expanded, **kwargs)
        inputs = super().__call__(images=now, text=expanded, **kwargs)
        prompts = prompts_each(world_prompt, len(texts))
        image_prompts = [prompt for entry, prompt in zip(with_world, prompts, strict=True) for _ in entry]
        inputs.update(self.world_inputs(flat, steps, seed, image_prompts))
        return inputs

    def token_ids(self, texts: Sequence[str], **kwargs: Any) -> BatchFeature:
        """`input_ids`, `attention_mask` and `token_type_ids` (B, L) of prompts, each image as its soft tokens."""
        expanded = [text.replace(self.boi_token, self.full_image_sequence) for text in texts]
        inputs = BatchFeature(dict(self.tokenizer(expanded, **kwargs)))
        inputs["token_type_ids"] = (inputs["input_ids"] == self.tokenizer.image_token_id).long()
        return inputs

    def with_placeholders(
        self, texts: Sequence[str], images: Sequence[Sequence[ImageOrVideo]], num_world_steps: int
    ) -> list[str]:
        """Prompts with a block of world placeholders for each of their `images`, which are those with world tokens."""
        past = self.num_past_steps([image for entry in images for image in entry])
        block = self.boi_token + WORLD_TOKEN * self.config.world_token_count(num_world_steps, past)
        return [text.replace(self.boi_token, block, len(entry)) for text, entry in zip(texts, images, strict=True)]

    def with_world(
        self, images: Sequence[Sequence[ImageOrVideo]], world_images: str | None = None
    ) -> list[list[ImageOrVideo]]:
        """The images and videos of each prompt that get world tokens.

        Raises:
            ValueError: if `world_images` is neither `first` nor `all`, or if a video gets no world tokens, so that its
                past would not be read.
        """
        which = self.config.check_world_images(self.config.world_images if world_images is None else world_images)
        if which == "all":
            return [list(entry) for entry in images]
        for entry in images:
            for number, image in enumerate(entry[1:], start=2):
                if isinstance(image, Video) and image.num_frames > 1:
                    raise ValueError(
                        f"Image {number} of a question is a video, and with world_images='first' its past would not be "
                        "read: put the video first, or pass world_images='all'."
                    )
        return [list(entry[:1]) for entry in images]

    def num_past_steps(self, images: Sequence[ImageOrVideo]) -> int:
        """P of the images and videos in one batch; 0 for images.

        Raises:
            ValueError: if the model reads no videos, if a video is too short to have a past, or if not all have the
                same P.
        """
        lengths = [image.num_frames if isinstance(image, Video) else 1 for image in images]
        steps = sorted({self.config.past_steps_of(length) for length in lengths})
        if len(steps) > 1:
            read = " and ".join(str(self.config.num_pixel_frames(0, past)) for past in steps)
            raise ValueError(
                f"The images and videos of one batch have {read} frames to read (an image has 1), which must be "
                "equal: group your questions by it, or cut the videos to one length."
            )
        return steps[0] if steps else 0

    def frames_of(self, image: ImageOrVideo) -> list[Image.Image]:
        """The frames that the world model reads: the image, or the last 1 + 4·P frames of a video."""
        if not isinstance(image, Video):
            return [image]
        count = self.config.num_pixel_frames(0, self.config.past_steps_of(image.num_frames))
        if len(image.frames) < count:
            raise ValueError(
                f"The model reads the last {count} frames of a video, and {len(image.frames)} of its "
                f"{image.num_frames:,} were kept: load it with load_video(…, keep={count}), and a larger number if it "
                f"has more than {self.config.world_config.fps} frames per second."
            )
        return list(image.frames[-count:])

    def world_pixels(self, images: Sequence[ImageOrVideo]) -> np.ndarray:
        """What the world model reads of loaded `images`, as pixels uint8 (n, F, S, S, 3)."""
        self.num_past_steps(images)
        return stack_pixels([self.frames_of(image) for image in images], self.config.world_image_size)

    def world_inputs(
        self,
        images: Sequence[ImageOrVideo],
        num_world_steps: int,
        seed: int = 0,
        world_prompt: str | Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """What the world model needs for loaded `images`: frames in [-1, 1], seeds from content and prompt, and steps.

        Returns:
            `world_frames` (n, 3, F, S, S) float32, `world_seeds` (n,) and `num_world_steps` (n,) int64, and with any
            prompt `world_prompt`, n strings.
        """
        prompts = prompts_each(world_prompt, len(images))
        if any(prompts) and num_world_steps == 0:
            raise ValueError("A world prompt describes imagined steps, and num_world_steps is 0: pass 1 or more.")
        pixels = self.world_pixels(images)
        seeds = [content_seed(clip, prompt, seed) for clip, prompt in zip(pixels, prompts, strict=True)]
        return {
            **({"world_prompt": prompts} if any(prompts) else {}),
            "world_frames": frames_of(pixels),
            "world_seeds": torch.tensor(seeds, dtype=torch.int64),
            "num_world_steps": torch.full((len(seeds),), num_world_steps, dtype=torch.int64),
        }

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: list[str]) -> None:
        """Gemma3Processor's check on lists of ids, since counting in a tensor takes 10 ms per prompt."""
        rows = [row.tolist() if isinstance(row, torch.Tensor) else row for row in text_inputs["input_ids"]]
        super()._check_special_mm_tokens(text, BatchFeature({"input_ids": rows}), modalities)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "world_frames", "world_seeds", "num_world_steps"]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches, without its characters, the place after the first character of each control token's name."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names))


def prompts_each(world_prompt: str | Sequence[str] | None, count: int | None) -> list[str]:
    """One stripped world prompt for each of `count` (None: one per prompt passed); empty for the default prompt."""
    if world_prompt is None or isinstance(world_prompt, str):
        return [(world_prompt or "").strip()] * (1 if count is None else count)
    if isinstance(world_prompt, list | tuple):
        world_prompt = ["" if prompt is None else prompt for prompt in world_prompt]
    prompts = [prompt.strip() for prompt in texts_of("world_prompt", world_prompt)]
    if count is not None and len(prompts) != count:
        given, asked = counted(len(prompts), "world prompt"), counted(count, "input")
        raise ValueError(f"Got {given} for {asked}: pass one, or one per input.")
    return prompts


def texts_of(name: str, value: Any) -> list[str]:
    """The argument `name`, one text or several, as a list; a ValueError if it is anything else."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)
    texts = {f"{name}[{index}]": text for index, text in enumerate(value)} if several else {name: value}
    for where, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{where} has the type {type(text).__name__}; pass a string, or a list of strings.")
    return list(texts.values())


def check_chat(conversation: Any) -> None:
    """Raises a ValueError for a turn whose content a chat template would leave out, or fail at."""
    if isinstance(conversation, list | tuple) and conversation and isinstance(conversation[0], list | tuple):
        for chat in conversation:
            check_chat(chat)
        return
    for turn in conversation if isinstance(conversation, list | tuple) and conversation else [conversation]:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not all(map(is_part, parts)):
            raise ValueError(
                f"A chat has the turn {turn!r:.100}; each turn is {{'role': …, 'content': …}}, whose content is a "
                "string, or a list of parts such as {'type': 'text', 'text': …} and {'type': 'image', 'image': …}."
            )


def is_part(part: Any) -> bool:
    """Whether `part` is a text or an image of a turn; a video is refused when it is read."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(part.get("text"), str) if kind == "text" else kind in ("image", "video")
