"""Samples to a batch: the chat's ids, labels on what the assistant says, pictures, and what the world model is asked.

What varies from batch to batch (how far ahead, which of several futures, with or without world or picture) is drawn
from the place of the batch in the run and from nothing else, so that a resumed run draws the same.

Shapes: B samples, L tokens, n pictures with a world block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theworld.datasets.samples import Message, Sample
from theworld.inference.latent_cache import LatentCache, WorldRequest
from theworld.inference.prompting import TURN, Turns
from theworld.media.images import to_frames
from theworld.media.inputs import ImageOrVideo, LoadedImages, group_images
from theworld.model.processing import WORLD_TOKEN, TheWorldProcessor


@dataclass(frozen=True)
class IndexedSample:
    """A sample and its place in the run.

    Attributes:
        place: a number that no other sample of the run has; what is drawn depends on it.
        still: for evaluation: nothing is drawn.
        left_out: samples of a stream that were left out since the one before.
    """

    place: int
    sample: Sample
    still: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class BatchSampling:
    """What may vary from batch to batch.

    Attributes:
        num_world_steps: N where nothing is drawn.
        steps_shares: numbers of world steps to draw from and how often; empty draws none.
        world_dropout, picture_dropout: shares of batches without world, and with pictures that the world model alone
            sees.
        true_futures: share of samples that read what really happened, where it is known.
        constant_world: whether zeros stand in the place of all latents, so that the world tells nothing.
        first_seed, futures: seeds first_seed … first_seed + futures - 1 imagine the futures of a picture.
        seed: of the draws themselves.
    """

    num_world_steps: int = 0
    steps_shares: Mapping[int, float] = field(default_factory=dict)
    world_dropout: float = 0.0
    picture_dropout: float = 0.0
    true_futures: float = 0.0
    constant_world: bool = False
    first_seed: int = 0
    futures: int = 1
    seed: int = 0

    def steps(self) -> tuple[int, ...]:
        """Every number of world steps that can be drawn."""
        return tuple(sorted(self.steps_shares)) or (self.num_world_steps,)

    def still(self) -> BatchSampling:
        """The same without chance, as evaluation wants it."""
        return BatchSampling(self.num_world_steps, constant_world=self.constant_world, first_seed=self.first_seed)


class ChatCollator:
    """Makes batches of placed samples.

    A batch has Gemma's inputs, `labels` (B, L), and with the world on either `world_latents` (n, C, T, h, w) or
    `world_requests`, a list of n things to ask the world model.

    Args:
        processor: of the model that learns.
        draws: what varies from batch to batch.
        cache: world latents; None leaves requests to whoever holds the world model.
        world_prompt: for samples that bring none.
    """

    def __init__(
        self,
        processor: TheWorldProcessor,
        draws: BatchSampling,
        cache: LatentCache | None = None,
        world_prompt: str | None = None,
    ) -> None:
        self.processor = processor
        self.draws = draws
        self.cache = cache
        self.world_prompt = world_prompt
        self.turns = Turns(processor.tokenizer)

    # ------------------------------------------------------------------------------------------------------- the text

    def chat(self, messages: Sequence[Message]) -> str:
        """A whole chat as text, up to the end of the last answer's turn."""
        return str(self.processor.apply_chat_template(list(messages))).rstrip("\n")

    def prompt(self, messages: Sequence[Message]) -> str:
        """A chat as text up to where its last answer begins."""
        return str(self.processor.apply_chat_template(list(messages[:-1]), add_generation_prompt=True))

    def text_lengths(self, chats: Sequence[Sequence[Message]]) -> list[int]:
        """Text tokens of each chat; a picture counts as its one mark."""
        texts = [self.chat(messages) for messages in chats]
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [len(row) for row in ids]

    def labels(self, input_ids: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Labels (B, L): the ids of each answer and its end of turn, -100 elsewhere.

        Raises:
            ValueError: a chat whose words hold marks of turns, so that it is not the chat that was meant.
        """
        for ids, sample in zip(input_ids.tolist(), samples, strict=True):
            turns = [message["role"] for message in sample.messages if message["role"] != "system"]
            found = self.turns.count(ids)
            if found != len(turns) or len(self.turns.answers(ids)) != turns.count("assistant"):
                raise ValueError(
                    f"{sample.origin} has {len(turns)} turns, but {found} turn markers ({TURN}) in its text; "
                    "remove the markers from its text."
                )
        return self.turns.labels(input_ids)

    # ------------------------------------------------------------------------------------------------------ the batch

    def __call__(self, placed: Sequence[IndexedSample]) -> dict[str, Any]:
        """A batch to learn from."""
        draws = self.draws.still() if placed[0].still else self.draws
        rng = np.random.default_rng([draws.seed, placed[0].place])
        world_on, pictures_on = self.draw_mode(draws, rng)
        steps = self.draw_steps(draws, rng)
        own_steps = {each.sample.num_world_steps for each in placed}
        if len(own_steps) > 1:
            raise ValueError(f"samples of one batch look {own_steps} world steps ahead; group them by that number.")
        for own in own_steps:
            if own is not None:
                steps = self.processor.config.check_world_steps(own)
        seed = draws.first_seed + int(rng.integers(draws.futures))
        samples = [each.sample for each in placed]
        true = [
            bool(np.random.default_rng([draws.seed, each.place, 1]).random() < draws.true_futures) for each in placed
        ]
        texts = [self.chat(sample.messages) for sample in samples]
        batch = self.encode(samples, texts, steps, seed, world_on, pictures_on, true, padding_side="right")
        batch["labels"] = self.labels(batch["input_ids"], samples)
        batch["left_out"] = sum(each.left_out for each in placed)
        return batch

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A left-padded batch that ends where the last answer of each sample begins, for `generate`."""
        draws = self.draws
        texts = [self.prompt(sample.messages) for sample in samples]
        false = [False] * len(samples)
        own = samples[0].num_world_steps
        steps = draws.num_world_steps if own is None else own
        return self.encode(samples, texts, steps, draws.first_seed, True, True, false, padding_side="left")

    def draw_mode(self, draws: BatchSampling, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether the world is on, and whether Gemma sees the pictures."""
        chance = rng.random()
        without_world = chance < draws.world_dropout
        without_picture = not without_world and chance < draws.world_dropout + draws.picture_dropout
        return self.processor.config.enable_world and not without_world, not without_picture

    def draw_steps(self, draws: BatchSampling, rng: np.random.Generator) -> int:
        chance = rng.random()
        for steps, share in draws.steps_shares.items():
            chance -= share
            if chance < 0:
                return steps
        return max(draws.steps_shares, default=draws.num_world_steps)

    def encode(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str],
        steps: int,
        seed: int,
        world_on: bool,
        pictures_on: bool,
        true: Sequence[bool],
        padding_side: str,
    ) -> dict[str, Any]:
        """Ids, pictures and what the world model is asked, or its answers."""
        pictures = [load_pictures(sample) for sample in samples]
        shown, texts = list(pictures), list(texts)
        for row, sample in enumerate(samples):
            if world_on and (sample.hide_picture or not pictures_on):
                past = self.processor.num_past_steps(self.with_world(pictures[row]))
                shown[row], texts[row] = [], self.without_pictures(texts[row], steps, past)
        inputs = self.processor(
            images=LoadedImages(shown) if any(shown) else None,
            text=texts,
            num_world_steps=steps,
            enable_world=world_on,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=False,  # the template has written <bos>
            return_tensors="pt",
        )
        for name in ("world_frames", "world_seeds", "num_world_steps", "world_prompt"):
            inputs.pop(name, None)  # asked below, sample by sample
        batch = dict(inputs)
        if world_on and any(pictures):
            self.add_world(batch, samples, pictures, steps, seed, true)
        return batch

    def with_world(self, pictures: Sequence[ImageOrVideo]) -> list[ImageOrVideo]:
        """The pictures of one sample that have a world block."""
        return self.processor.with_world([pictures])[0]

    def without_pictures(self, text: str, steps: int, past: int) -> str:
        """A prompt with world placeholders where the pictures were."""
        config = self.processor.config
        block = WORLD_TOKEN * config.world_token_count(steps, past)
        mark = self.processor.boi_token
        if config.world_images == "first":
            text = text.replace(mark, block, 1)
            return text.replace(mark, "")
        return text.replace(mark, block)

    # ------------------------------------------------------------------------------------------------------ the world

    def add_world(
        self,
        batch: dict[str, Any],
        samples: Sequence[Sample],
        pictures: Sequence[Sequence[Any]],
        steps: int,
        seed: int,
        true: Sequence[bool],
    ) -> None:
        """Adds `world_latents`, or `world_requests` where they are not known yet."""
        given = [sample.world_latents is not None for sample, own in zip(samples, pictures, strict=True) if own]
        if any(given) and not all(given):
            raise ValueError("some samples of a batch bring world_latents and others do not; give them all or none.")
        if any(given) and not self.draws.constant_world:
            batch["world_latents"] = torch.stack([given_latents(sample, steps) for sample in samples if sample.images])
            return
        past = self.processor.num_past_steps([picture for own in pictures for picture in self.with_world(own)])
        if past:
            batch["num_past_steps"] = past
        if self.draws.constant_world:
            config = self.processor.config
            count = sum(len(self.with_world(own)) for own in pictures)
            batch["world_latents"] = torch.zeros(
                count, config.world_config.latent_channels, past + 1 + steps, *config.world_grid()
            )
            return
        requests = [
            request
            for sample, own, really in zip(samples, pictures, true, strict=True)
            for request in self.requests(sample, own, steps, seed, really)
        ]
        if self.cache is None:
            batch["world_requests"] = requests
        else:
            batch["world_latents"] = torch.stack([request.cut(self.cache.read(request.key)) for request in requests])

    def requests(
        self, sample: Sample, pictures: Sequence[Any], steps: int, seed: int, true: bool
    ) -> list[WorldRequest]:
        """What the world model is asked for one sample: one request a picture with a world block."""
        if not pictures:
            return []
        chosen = self.with_world(pictures)
        prompt = (sample.world_prompt or self.world_prompt) if steps else None
        inputs = self.processor.world_inputs(chosen, steps, seed, prompt)
        seeds = inputs["world_seeds"].tolist()
        requests = [
            WorldRequest(frames, steps, own_seed, prompt or "")
            for frames, own_seed in zip(inputs["world_frames"], seeds, strict=True)
        ]
        if true and steps and sample.future_frames is not None:
            requests[0] = self.true_request(sample, chosen[0], steps)
        elif sample.past_frames is not None and not steps:
            requests[0] = self.past_request(sample, chosen[0])
        return requests

    def true_request(self, sample: Sample, picture: Any, steps: int) -> WorldRequest:
        """The clip of what really happened: the picture and the 4·N frames after it.

        Raises:
            ValueError: the sample knows fewer.
        """
        assert sample.future_frames is not None
        config = self.processor.config
        count = config.num_pixel_frames(steps) - 1
        if len(sample.future_frames) < count:
            raise ValueError(short_future(sample.origin, len(sample.future_frames), steps, count))
        clip = [*self.processor.frames_of(picture), *sample.future_frames[:count]]
        return WorldRequest(to_frames([clip], config.world_image_size)[0], 0, 0)

    def past_request(self, sample: Sample, picture: Any) -> WorldRequest:
        """The clip that the picture is in, of which its own moment is wanted.

        Raises:
            ValueError: a number of frames that does not make whole latent frames.
        """
        assert sample.past_frames is not None
        config = self.processor.config
        factor = config.world_config.temporal_factor
        if len(sample.past_frames) % factor:
            raise ValueError(f"{sample.origin} has {len(sample.past_frames)} past frames; give a multiple of {factor}.")
        after = sample.future_frames or ()
        clip = [*sample.past_frames, picture, *after[: len(after) // factor * factor]]
        # as long as the clip is known, so that all of its moments are encoded at once
        frames = to_frames([clip], config.world_image_size)[0]
        return WorldRequest(frames, 0, 0, moment=len(sample.past_frames) // factor)

    def all_requests(self, sample: Sample, still: bool = False) -> list[WorldRequest]:
        """Everything that a run may ask about a sample, for a cache; `still` for evaluation."""
        if sample.world_latents is not None or self.draws.constant_world or not self.processor.config.enable_world:
            return []
        pictures = load_pictures(sample)
        draws = self.draws.still() if still else self.draws
        requests = []
        for steps in draws.steps() if sample.num_world_steps is None else (sample.num_world_steps,):
            if not (draws.true_futures == 1 and steps and sample.future_frames is not None):
                for future in range(draws.futures if steps else 1):
                    requests += self.requests(sample, pictures, steps, draws.first_seed + future, False)
            if draws.true_futures > 0 and steps and sample.future_frames is not None:
                requests += self.requests(sample, pictures, steps, draws.first_seed, True)
        return requests


def load_pictures(sample: Sample) -> list[ImageOrVideo]:
    """A sample's pictures and videos, decoded.

    Raises:
        ValueError: one that cannot be read; it names the sample.
    """
    try:
        return group_images(list(sample.images), "")[0]
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{sample.origin}: {error}") from error


def short_future(origin: str, known: int, steps: int, wanted: int) -> str:
    """What is said of a sample that knows less of its future than a batch reads."""
    return (
        f"{origin} has {known} future frames, and {steps} world steps take {wanted}; give more, fewer steps, or "
        "set true_futures to 0."
    )


def given_latents(sample: Sample, steps: int) -> Tensor:
    """The latents (C, 1 + steps, h, w) that a sample brings.

    Raises:
        ValueError: they look less far ahead.
    """
    assert sample.world_latents is not None
    if sample.world_latents.shape[1] < 1 + steps:
        raise ValueError(
            f"{sample.origin} brings {sample.world_latents.shape[1]} latent frames, and {steps} world steps take "
            f"{1 + steps}; bring more, or take fewer steps."
        )
    return sample.world_latents[:, : 1 + steps]
