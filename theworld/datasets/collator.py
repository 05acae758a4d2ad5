"""From samples to a batch: the chat's ids, labels on the assistant's turns, images, and requests for the world model.

What varies from batch to batch (the number of world steps, the seed of the future, whether the world model or the image
is left out) is drawn from the index of the batch in the run and from nothing else, so that a resumed run draws the
same.

Shapes: B samples, L tokens, n images with a world block.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from theworld.datasets.samples import Message, Sample, naming
from theworld.inference.latent_cache import LatentCache, WorldRequest
from theworld.inference.prompting import ANSWER_OPENING, Turns
from theworld.media.images import load_images, stack_pixels
from theworld.media.inputs import ImageOrVideo, LoadedImages, group_images
from theworld.media.video import Video
from theworld.model.configuration import TheWorldConfig
from theworld.model.placeholders import Tokens
from theworld.model.processing import TheWorldProcessor, content_seed
from theworld.model.spec import WORLD_TOKEN

logger = logging.getLogger(__name__)

UNNORMALISED: dict[str, Any] = {"do_rescale": False, "do_normalize": False}  # pixels are normalised on the device


@dataclass(frozen=True)
class IndexedSample:
    """A sample and its index in the run.

    Attributes:
        index: unique in the run; what is drawn depends on it.
        deterministic: whether nothing is drawn, as in evaluation.
        num_skipped: how many samples of a stream were skipped since the previous one.
    """

    index: int
    sample: Sample
    deterministic: bool = False
    num_skipped: int = 0


@dataclass(frozen=True)
class BatchSampling:
    """What may vary from batch to batch.

    Attributes:
        num_world_steps: N where nothing is drawn.
        steps_shares: numbers of world steps to draw from, with the share of each; empty draws none.
        world_dropout, image_dropout: shares of batches without the world model, and of those whose images are seen by
            the world model only.
        true_futures: share of samples that read what really happened, where it is known.
        constant_world: whether all latents are replaced by zeros, so that the world tokens carry no information.
        first_seed, futures: the futures of an image are imagined with the seeds first_seed … first_seed + futures - 1.
        seed: of the draws themselves.
    """

    num_world_steps: int = 0
    steps_shares: Mapping[int, float] = field(default_factory=dict)
    world_dropout: float = 0.0
    image_dropout: float = 0.0
    true_futures: float = 0.0
    constant_world: bool = False
    first_seed: int = 0
    futures: int = 1
    seed: int = 0

    def steps(self) -> tuple[int, ...]:
        """Every number of world steps that can be drawn."""
        return tuple(sorted(self.steps_shares)) or (self.num_world_steps,)

    def deterministic(self) -> BatchSampling:
        """The same settings with nothing drawn, for evaluation."""
        return BatchSampling(self.num_world_steps, constant_world=self.constant_world, first_seed=self.first_seed)


class ChatCollator:
    """Makes batches of indexed samples.

    Pixels stay uint8 until they are on the device, since they are four times smaller (see `normalize`). A batch has
    Gemma's inputs, `labels` (B, L), the same tokens as `on_host`, and with the world model enabled either
    `world_latents` (n, C, T, h, w) or `world_requests`, a list of n requests for the world model.

    Args:
        processor: of the model that is trained.
        sampling: what varies from batch to batch.
        cache: world latents; None leaves the requests to the trainer, which has the world model.
        world_prompt: for samples without one.

    Attributes:
        vision_cache: image features; batches whose images are all in it hold `image_features` (images, tokens, D)
            instead of `pixel_values`.
    """

    def __init__(
        self,
        processor: TheWorldProcessor,
        sampling: BatchSampling,
        cache: LatentCache | None = None,
        world_prompt: str | None = None,
    ) -> None:
        self.processor = processor
        self.sampling = sampling
        self.cache = cache
        self.vision_cache: LatentCache | None = None
        self.world_prompt = world_prompt
        self.turns = Turns(processor.tokenizer)
        self.trims_answers = False  # whether the chat template was seen to do so, which is logged once

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """Pixels (images, 3, H, W) uint8 as Gemma's processor normalises them, float32, on their device."""
        own = self.processor.image_processor
        return own.rescale_and_normalize(
            pixel_values, own.do_rescale, own.rescale_factor, own.do_normalize, own.image_mean, own.image_std
        )

    # ------------------------------------------------------------------------------------------------------- the text

    def chat(self, messages: Sequence[Message]) -> str:
        """A complete chat as text, up to the end of the last answer's turn."""
        chat = self.in_words(messages)
        text = str(self.processor.apply_chat_template(chat)).rstrip("\n")
        for answer in [message["content"] for message in chat if message["role"] == "assistant"]:
            if not self.trims_answers and answer != answer.strip() and ANSWER_OPENING + answer not in text:
                self.trims_answers = True
                logger.warning(
                    "The chat template removes white space at the beginning and end of answers, such as %.80r", answer
                )
        return text

    def prompt(self, messages: Sequence[Message]) -> str:
        """A chat as text, up to the beginning of its last answer."""
        return str(self.processor.apply_chat_template(self.in_words(messages[:-1]), add_generation_prompt=True))

    def in_words(self, messages: Sequence[Message]) -> list[Message]:
        """A chat whose texts are encoded as words, also where they name control tokens."""
        words = self.processor.as_words
        chat = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = words(content)
            else:
                content = [{**part, "text": words(part["text"])} if "text" in part else part for part in content]
            chat.append({**message, "content": content})
        return chat

    def text_lengths(self, chats: Sequence[Sequence[Message]]) -> list[int]:
        """Text tokens of each chat; an image counts as its one placeholder."""
        texts = [self.chat(messages) for messages in chats]
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [len(row) for row in ids]

    def labels(self, input_ids: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Labels (B, L): the ids of each answer and its end of turn, -100 elsewhere.

        Raises:
            ValueError: if the chat template writes other turns than the chat has.
        """
        for ids, sample in zip(input_ids.tolist(), samples, strict=True):
            turns = [message["role"] for message in sample.messages if message["role"] != "system"]
            found = self.turns.count(ids)
            if found != len(turns) or len(self.turns.answers(ids)) != turns.count("assistant"):
                raise ValueError(
                    f"{sample.origin} has {len(turns)} turns, but the chat template of the language model writes "
                    f"{found}: use the template of Gemma 3."
                )
        return self.turns.labels(input_ids)

    # ------------------------------------------------------------------------------------------------------ the batch

    def __call__(self, indexed: Sequence[IndexedSample]) -> dict[str, Any]:
        """A batch for training.

        Raises:
            ValueError: if an image cannot be read, or if the samples do not fit into one batch.
        """
        sampling = self.sampling.deterministic() if indexed[0].deterministic else self.sampling
        rng = np.random.default_rng([sampling.seed, indexed[0].index])
        world_on, images_on = self.draw_mode(sampling, rng)
        steps = self.draw_steps(sampling, rng)
        sample_steps = {entry.sample.num_world_steps for entry in indexed}
        if len(sample_steps) > 1:
            raise ValueError(
                f"The samples of a batch have different num_world_steps ({sample_steps}): group them by that number."
            )
        for own_steps in sample_steps:
            if own_steps is not None:
                steps = self.processor.config.check_world_steps(own_steps)
        seed = sampling.first_seed + int(rng.integers(sampling.futures))
        samples = [entry.sample for entry in indexed]
        true = [
            bool(np.random.default_rng([sampling.seed, entry.index, 1]).random() < sampling.true_futures)
            for entry in indexed
        ]
        texts = [self.chat(sample.messages) for sample in samples]
        batch = self.encode(samples, texts, steps, seed, world_on, images_on, true, padding_side="right")
        batch["labels"] = self.labels(batch["input_ids"], samples)
        others = (batch.get(name) for name in ("attention_mask", "token_type_ids", "labels"))
        batch["on_host"] = Tokens(batch["input_ids"], *others)
        batch["num_skipped"] = sum(entry.num_skipped for entry in indexed)
        return batch

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A left-padded batch that ends where the last answer of each sample begins, for `generate`; see `encode`."""
        texts = [self.prompt(sample.messages) for sample in samples]
        false = [False] * len(samples)
        own_steps = samples[0].num_world_steps
        steps = self.sampling.num_world_steps if own_steps is None else own_steps
        return self.encode(samples, texts, steps, self.sampling.first_seed, True, True, false, padding_side="left")

    def draw_mode(self, sampling: BatchSampling, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether the world model is enabled, and whether Gemma sees the images."""
        chance = rng.random()
        without_world = chance < sampling.world_dropout
        without_images = not without_world and chance < sampling.world_dropout + sampling.image_dropout
        return self.processor.config.enable_world and not without_world, not without_images

    def draw_steps(self, sampling: BatchSampling, rng: np.random.Generator) -> int:
        chance = rng.random()
        for steps, share in sampling.steps_shares.items():
            chance -= share
            if chance < 0:
                return steps
        return max(sampling.steps_shares, default=sampling.num_world_steps)

    def encode(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str],
        steps: int,
        seed: int,
        world_on: bool,
        images_on: bool,
        true: Sequence[bool],
        padding_side: str,
    ) -> dict[str, Any]:
        """Ids, images and the world model's requests or latents.

        Args:
            images_on: whether Gemma sees the images.
            true: for each sample, whether its true future is read.

        Returns:
            Gemma's inputs, (B, L) int64 and `pixel_values` (images, 3, H, W) uint8; and with the world model
            `world_requests`, one per image that it reads, or their latents `world_latents` (n, C, P + 1 + N, h, w).
        """
        images = [load_sample_images(sample, self.processor.config.read_video) for sample in samples]
        shown, texts = list(images), list(texts)
        for sample, entry in zip(samples, images, strict=True) if world_on else ():
            with naming(sample.origin):
                self.processor.num_past_steps(self.with_world(entry))
        for row, sample in enumerate(samples):
            if world_on and (sample.hide_images or not images_on):
                past = self.processor.num_past_steps(self.with_world(images[row]))
                shown[row], texts[row] = [], self.without_images(texts[row], steps, past)
        if world_on:  # what the world model reads is requested below, sample by sample
            texts = self.processor.with_placeholders(texts, self.processor.with_world(shown), steps)
        features = self.cached_features(shown)
        options: dict[str, Any] = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
        options["add_special_tokens"] = False  # the template has written <bos>
        if features is None:
            given = LoadedImages(shown) if any(shown) else None
            batch = dict(self.processor(images=given, text=texts, enable_world=False, **options, **UNNORMALISED))
        else:
            batch = {**self.processor.token_ids(texts, **options), "image_features": features}
        if world_on and any(images):
            self.add_world(batch, samples, images, steps, seed, true)
        return batch

    def cached_features(self, shown: Sequence[Sequence[ImageOrVideo]]) -> Tensor | None:
        """Features (images, tokens, D) of the images that Gemma sees, or None if some are not in the cache."""
        if self.vision_cache is None or not any(shown):
            return None
        keys = [image_key(image) for entry in shown for image in entry]
        if not all(key in self.vision_cache for key in keys):
            return None
        return torch.stack([self.vision_cache.read(key) for key in keys])

    def images_by_key(self, sample: Sample) -> dict[str, Image.Image]:
        """What Gemma sees of a sample's images and videos, by the key of the vision cache."""
        images = load_sample_images(sample, self.processor.config.read_video)
        return {image_key(image): seen_by_gemma(image) for image in images}

    def pixels_of(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as pixels (n, 3, H, W) uint8 of the size that Gemma reads."""
        pixels: Tensor = self.processor.image_processor(list(images), return_tensors="pt", **UNNORMALISED).pixel_values
        return pixels

    def with_world(self, images: Sequence[ImageOrVideo]) -> list[ImageOrVideo]:
        """The images of one sample that have a world block."""
        return self.processor.with_world([images])[0]

    def without_images(self, text: str, steps: int, past: int) -> str:
        """A prompt with world placeholders in place of the images."""
        config = self.processor.config
        block = WORLD_TOKEN * config.world_token_count(steps, past)
        placeholder = self.processor.boi_token
        if config.world_images == "first":
            return text.replace(placeholder, block, 1).replace(placeholder, "")
        return text.replace(placeholder, block)

    # ------------------------------------------------------------------------------------------------ the world model

    def add_world(
        self,
        batch: dict[str, Any],
        samples: Sequence[Sample],
        images: Sequence[Sequence[Any]],
        steps: int,
        seed: int,
        true: Sequence[bool],
    ) -> None:
        """Adds `world_latents`, or `world_requests` where the latents are not known yet."""
        given = [sample.world_latents is not None for sample, entry in zip(samples, images, strict=True) if entry]
        if any(given) and not all(given):
            raise ValueError(
                "Some samples of a batch have world_latents and others do not: give them to all or to none."
            )
        if any(given) and not self.sampling.constant_world:
            config = self.processor.config
            latents = [given_latents(sample, steps, config) for sample in samples if sample.images]
            batch["world_latents"] = torch.stack(latents)
            return
        past = self.processor.num_past_steps([image for entry in images for image in self.with_world(entry)])
        if past:
            batch["num_past_steps"] = past
        if self.sampling.constant_world:
            config = self.processor.config
            count = sum(len(self.with_world(entry)) for entry in images)
            batch["world_latents"] = torch.zeros(
                count, config.world_config.latent_channels, past + 1 + steps, *config.world_grid()
            )
            return
        requests = [
            request
            for sample, entry, is_true in zip(samples, images, true, strict=True)
            for request in self.requests(sample, entry, steps, seed, is_true)
        ]
        if self.cache is None:
            batch["world_requests"] = requests
        else:
            batch["world_latents"] = torch.stack([request.cut(self.cache.read(request.key)) for request in requests])

    def requests(self, sample: Sample, images: Sequence[Any], steps: int, seed: int, true: bool) -> list[WorldRequest]:
        """The requests of one sample for the world model: one per image with a world block."""
        if not images:
            return []
        with_world = self.with_world(images)
        prompt = (sample.world_prompt or self.world_prompt) if steps else None
        requests = [
            WorldRequest(torch.from_numpy(pixels), steps, content_seed(pixels, prompt or "", seed), prompt or "")
            for pixels in self.processor.world_pixels(with_world)
        ]
        future = self.true_future(sample, steps) if true and steps else None
        if future is not None:
            clip = [*self.processor.frames_of(with_world[0]), *future]
            with naming(sample.origin):
                requests[0] = WorldRequest(self.pixels(clip), 0, 0)
        elif sample.past_frames is not None and not steps:
            requests[0] = self.past_request(sample, with_world[0])
        return requests

    def true_future(self, sample: Sample, steps: int) -> Sequence[Any] | None:
        """What really happened: the 4·N frames after now; None if it is not known, or a video ends now.

        Raises:
            ValueError: if the sample has fewer future frames.
        """
        if sample.future_frames is None:
            return None
        config = self.processor.config
        count = config.num_pixel_frames(steps) - 1
        with naming(sample.origin):
            future = config.read_future(sample.future_frames, count)
        if isinstance(sample.future_frames, Video) and not future:
            return None
        if len(future) < count:
            raise ValueError(short_future(sample.origin, len(future), steps, count))
        return future

    def past_request(self, sample: Sample, image: Any) -> WorldRequest:
        """The clip that contains the image, of which the latents of the image's moment are wanted.

        Raises:
            ValueError: if the past frames do not make complete latent frames.
        """
        assert sample.past_frames is not None
        config = self.processor.config
        factor = config.world_config.temporal_factor
        if len(sample.past_frames) % factor:
            raise ValueError(
                f"{sample.origin} has {len(sample.past_frames)} past frames, and the number must be a multiple of "
                f"{factor}."
            )
        after = sample.future_frames or ()
        if isinstance(after, Video):
            after = config.read_future(after, factor * config.max_world_steps)
        clip = [*sample.past_frames, image, *after[: len(after) // factor * factor]]
        # the complete clip, so that all of its moments are encoded at once
        with naming(sample.origin):
            return WorldRequest(self.pixels(clip), 0, 0, moment=len(sample.past_frames) // factor)

    def pixels(self, clip: Sequence[Any]) -> Tensor:
        """Images in any form as pixels (F, S, S, 3) uint8."""
        return torch.from_numpy(stack_pixels([load_images(clip)], self.processor.config.world_image_size)[0])

    def all_requests(self, sample: Sample, deterministic: bool = False) -> list[WorldRequest]:
        """Every request that a run may make for a sample, for a cache; `deterministic` for evaluation."""
        if sample.world_latents is not None or self.sampling.constant_world or not self.processor.config.enable_world:
            return []
        images = load_sample_images(sample, self.processor.config.read_video)
        sampling = self.sampling.deterministic() if deterministic else self.sampling
        requests = []
        for steps in sampling.steps() if sample.num_world_steps is None else (sample.num_world_steps,):
            if not (sampling.true_futures == 1 and steps and sample.future_frames is not None):
                for future in range(sampling.futures if steps else 1):
                    requests += self.requests(sample, images, steps, sampling.first_seed + future, False)
            if sampling.true_futures > 0 and steps and sample.future_frames is not None:
                requests += self.requests(sample, images, steps, sampling.first_seed, True)
        return requests


def seen_by_gemma(image: ImageOrVideo) -> Image.Image:
    """The image, or the frame of a video that is now."""
    return image.now if isinstance(image, Video) else image


def image_key(image: ImageOrVideo) -> str:
    """Identifies what Gemma sees of an image: equal pixels give equal keys."""
    pixels = np.asarray(seen_by_gemma(image).convert("RGB"))
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


def load_sample_images(sample: Sample, read_video: Callable[[Video], Video] = Video.load) -> list[ImageOrVideo]:
    """Decodes the images and videos of a sample; `read_video` as in `group_images`.

    Raises:
        ValueError: if one cannot be read; the message names the sample.
    """
    with naming(sample.origin):
        return group_images(list(sample.images), "", read_video)[0]


def short_future(origin: str, known: int, steps: int, wanted: int) -> str:
    """The error message for a sample with fewer true future frames than a batch reads."""
    return (
        f"{origin} has {known} future frames, and {steps} world steps need {wanted}: give it more, use fewer steps, or "
        "set true_futures to 0."
    )


def given_latents(sample: Sample, steps: int, config: TheWorldConfig) -> Tensor:
    """The latents (C, 1 + steps, h, w) that come with a sample.

    Raises:
        ValueError: if they do not fit the model, have fewer frames, or are no numbers.
    """
    assert sample.world_latents is not None
    with naming(sample.origin):
        config.check_world_latents(sample.world_latents[None], 1)
    if not sample.world_latents.isfinite().all():
        raise ValueError(f"{sample.origin} has world_latents that are infinite or no number: compute them again.")
    if sample.world_latents.shape[1] < 1 + steps:
        raise ValueError(
            f"{sample.origin} has {sample.world_latents.shape[1]} latent frames, and {steps} world steps need "
            f"{1 + steps}: give it more, or use fewer steps."
        )
    return sample.world_latents[:, : 1 + steps]
