"""Arms: ways to run the same questions. Each arm is one function from Batch to Batch and one entry of ARMS.

An arm changes what the model is given (its images, its question, its world latents or tokens) or which trained weights
answer. The questions, their order and the reading of answers stay the same, so that arms can be compared question by
question. *Interventions* change the input of the weights under test; *trained controls* have weights of their own,
trained by the same recipe with one flag changed.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.strategies import Strategy, gated, once, over_futures
from theworld.evaluation.tasks import Item, image_key
from theworld.inference.filmstrip import introduce
from theworld.inference.futures import MAX_FUTURES
from theworld.inference.prompting import Question
from theworld.media.video import Video
from theworld.messages import suggest
from theworld.model.configuration import TheWorldConfig
from theworld.model.gate import Gate

# These texts are read by the language model.
FORESEE = "Describe in one sentence what happens next."
FORESEEN = "Foreseen in words: {words}\n\n{question}"
MAX_FORESIGHT_TOKENS = 64
KEPT_FEATURES = 256  # images whose soft tokens are kept, the last ones used; those of Gemma 3 4B take 1.3 MB each

Rollout: TypeAlias = tuple[str, int, int, str]  # image, number of world steps, seed, world prompt


@dataclass
class Imagination:
    """What the arms of one model share: rollouts, cached by image, number of steps and seed, and image features.

    An image is encoded once, whatever the number of world steps that an arm imagines from it.

    Attributes:
        model: imagines, encodes, decodes and describes.
        used: keys of the rollouts requested since `start`; `seconds` holds their cost, whichever arm computed them.
        spent: seconds spent on rollouts since `start`.
    """

    model: ModelAnswerer
    spent: float = 0.0
    used: set[Rollout] = field(default_factory=set)
    seconds: dict[Rollout, float] = field(default_factory=dict)
    _latents: dict[Rollout, Tensor] = field(default_factory=dict)
    _features: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    _words: dict[str, str] = field(default_factory=dict)
    _keys: dict[int, tuple[Any, str]] = field(default_factory=dict)  # by id, with the image, so that ids stay valid

    @property
    def gate(self) -> Gate:
        """The gate of the model, or the default."""
        return self.model.gate

    @property
    def uses_all_images(self) -> bool:
        """Whether the world model starts from every image of a question, or from one."""
        return bool(self.model.config.world_images == "all")

    def start(self) -> None:
        """Resets the cost account, for another arm."""
        self.used.clear()
        self.spent = 0.0

    def rollout_seconds(self) -> float:
        """Seconds that the rollouts requested since `start` took when they were computed."""
        return sum(self.seconds[key] for key in self.used)

    def num_rollouts(self) -> int:
        return sum(steps > 0 for _, steps, *_ in self.used)

    def latents(
        self, images: Sequence[Sequence[Any]], num_world_steps: int, seed: int, prompts: Sequence[str] = ()
    ) -> Tensor:
        """Present and imagined latents (n, C, 1 + num_world_steps, h, w) on the CPU, one row per image.

        Args:
            images: for each question, the images that the world model starts from; n is their total number.
            prompts: the world prompt of each question, "" for none; empty for no prompts.
        """
        flat = [image for entry in images for image in entry]
        of_question = prompts if prompts and num_world_steps else [""] * len(images)
        each = [prompt for entry, prompt in zip(images, of_question, strict=True) for _ in entry]
        seed = seed if num_world_steps else 0  # the present has none
        keys = [(self.key(image), num_world_steps, seed, prompt) for image, prompt in zip(flat, each, strict=True)]
        missing = {key: image for key, image in zip(keys, flat, strict=True) if key not in self._latents}
        if missing:
            given: dict[str, Any] = {"world_prompt": [prompt for *_, prompt in missing]} if any(each) else {}
            if num_world_steps:
                given["present"] = self.latents([[image] for image in missing.values()], 0, 0)
            started = time.perf_counter()
            latents = self.model.imagine(list(missing.values()), num_world_steps, seed=seed, **given).cpu()
            seconds = time.perf_counter() - started
            self.spent += seconds
            self.seconds.update(dict.fromkeys(missing, seconds / len(missing)))
            self._latents.update(zip(missing, latents, strict=True))
        self.used.update(keys)
        self.used.update((image, 0, 0, "") for image, *_ in keys)
        return torch.stack([self._latents[key] for key in keys])

    def frames(self, latents: Tensor) -> list[Any]:
        """Frames (F, H, W, 3) uint8 of each row, for the language model only."""
        return list(self.model.decode(latents, check_guardrail=False))

    def true_latents(self, items: Sequence[Item], num_world_steps: int) -> Tensor:
        """Latents (n, C, 1 + num_world_steps, h, w) of the true frames, on the CPU."""
        return torch.cat([self.model.encode(self.true_clip(item, num_world_steps)).cpu() for item in items])

    def true_clip(self, item: Item, num_world_steps: int) -> list[Any]:
        """The true frames that the world model reads: the past of a clip, the present, and what followed."""
        config = self.model.config
        count = config.num_pixel_frames(num_world_steps)
        frames = list(true_frames(item, count, config)[:count])
        start = item.world_images(use_all=False, config=config)[0]
        if not isinstance(start, Video):
            return frames
        past = config.num_pixel_frames(0, config.past_steps_of(start.num_frames)) - 1
        return [*start.frames[len(start.frames) - 1 - past : -1], *frames]

    def tokens(self, latents: Tensor, kind: str, seed: int) -> Tensor:
        """World tokens (n, K, D) on the CPU; `kind` as in `ModelAnswerer.world_tokens`."""
        return self.model.world_tokens(latents, kind, seed).cpu()

    def features(self, images: Sequence[Sequence[Any]]) -> Tensor:
        """Gemma's soft tokens (images, tokens, D), computed once for an image that the last KEPT_FEATURES contain."""
        flat = [image for entry in images for image in entry]
        keys = [self.key(image) for image in flat]
        missing = {key: image for key, image in zip(keys, flat, strict=True) if key not in self._features}
        if missing:
            self._features.update(zip(missing, self.model.image_features(list(missing.values())), strict=True))
        for key in keys:
            self._features.move_to_end(key)
        return torch.stack([self._features[key] for key in keys])

    def end_batch(self, seed: int = 0) -> None:
        """Drops the soft tokens of all but the last images, and futures with other seeds than the run's."""
        self._keys.clear()
        self._latents = {key: latents for key, latents in self._latents.items() if key[2] in (0, seed)}
        while len(self._features) > KEPT_FEATURES:
            self._features.popitem(last=False)

    def key(self, image: Any) -> str:
        """`image_key`, computed once per image until `end_batch`."""
        if id(image) not in self._keys:
            self._keys[id(image)] = image, image_key(image)
        return self._keys[id(image)][1]

    def foreseen(self, images: Sequence[Sequence[Any]]) -> list[str]:
        """For each question's images, the base Gemma model's description of what happens next."""
        keys = ["/".join(self.key(image) for image in entry) for entry in images]
        missing = {key: list(entry) for key, entry in zip(keys, images, strict=True) if key not in self._words}
        if missing:
            replies = self.model.reply(
                list(missing.values()),
                [FORESEE] * len(missing),
                max_new_tokens=MAX_FORESIGHT_TOKENS,
                inputs=ReplyInputs(enable_world=False, lora=False),
            )
            self._words.update((key, reply.text) for key, reply in zip(missing, replies, strict=True))
        return [self._words[key] for key in keys]


@dataclass(frozen=True)
class Batch:
    """What the model is about to be asked.

    Attributes:
        images: the images of each question.
        questions: prompt texts, or chats.
        num_world_steps: N, future latent frames.
        seed: of the rollouts.
        items: the items of the questions, with true frames where the benchmark has them.
        world_images: for each question, the images that the world model starts from.
        other_images: for each of those, an image of another item; empty if no arm of the run reads others.
        imagination: rollouts, shared by the arms of one model.
        enable_world: False answers without world tokens.
        world_latents: (n, C, T, h, w) to read; None lets the model imagine its own.
        world_tokens: (n, K, D) replaces the tokens that the projector makes of `world_latents`.
        lora: False asks the base Gemma model.
    """

    images: list[list[Any]]
    questions: Sequence[Question]
    num_world_steps: int
    seed: int
    items: list[Item]
    world_images: list[list[Any]]
    other_images: list[list[Any]]
    imagination: Imagination
    enable_world: bool = True
    world_latents: Tensor | None = None
    world_tokens: Tensor | None = None
    lora: bool = True

    def imagined(self, images: list[list[Any]]) -> Tensor:
        """Latents of these images and of their imagined futures, with the world prompts of the questions."""
        prompts = [item.world_prompt for item in self.items]
        return self.imagination.latents(images, self.num_world_steps, self.seed, prompts)

    def rows(self, chosen: Sequence[int]) -> Batch:
        """These questions alone; for batches that no arm has changed."""
        assert self.world_latents is None
        assert self.world_tokens is None
        names = ("images", "questions", "items", "world_images", "other_images")
        rows: dict[str, Any] = {name: [getattr(self, name)[row] for row in chosen] for name in names}
        return replace(self, **rows)


@dataclass(frozen=True)
class Arm:
    """One way to run an evaluation.

    Attributes:
        meaning: one line of help.
        change: from the plain batch to what this arm asks.
        weights: name of the trained control that answers; None is the model under test.
        needs_trained_projector: whether the model that answers reads world tokens from its trained projector.
        needs_world: whether it needs a world model at all.
        looks_ahead: whether it depends on the number of world steps.
        reads_others: whether it needs images of other items.
        needs_base_gemma: whether it needs the base Gemma model.
        strategy: how often the model is asked, with which of the batches that `change` makes.
    """

    meaning: str
    change: Callable[[Batch], Batch]
    weights: str | None = None
    needs_trained_projector: bool = False
    needs_world: bool = True
    looks_ahead: bool = True
    reads_others: bool = False
    needs_base_gemma: bool = False
    strategy: Strategy = once


def true_frames(item: Item, count: int, config: TheWorldConfig, num_world_steps: int = 0) -> Any:
    """True frames of an item, the present first: `count`, and where more are known those of `num_world_steps`.

    Raises:
        ValueError: if the benchmark has fewer than `count` true frames.
    """
    frames = item.true_frames(config, max(count, config.num_pixel_frames(num_world_steps)))
    if len(frames) < count:
        raise ValueError(
            f"{item.where} has {len(frames)} true frames and this arm needs {count}; use fewer world steps, or leave "
            "the arm out."
        )
    return frames


def fused(batch: Batch) -> Batch:
    return replace(batch, world_latents=batch.imagined(batch.world_images))


def fused_0(batch: Batch) -> Batch:
    return fused(replace(batch, num_world_steps=0))


def averaged(count: int) -> Callable[[Batch], Batch]:
    """Reads the mean of the latents of `count` futures, with the seeds from the batch's own on."""

    def change(batch: Batch) -> Batch:
        futures = [replace(batch, seed=batch.seed + number).imagined(batch.world_images) for number in range(count)]
        return replace(batch, world_latents=torch.stack(futures).mean(dim=0))

    return change


def without_world(batch: Batch) -> Batch:
    return replace(batch, enable_world=False, world_latents=None)


def gemma(batch: Batch) -> Batch:
    return replace(without_world(batch), lora=False)


def verbal(batch: Batch) -> Batch:
    words = batch.imagination.foreseen(batch.images)
    questions = [
        reworded(question, partial(foreseen_first, text)) for text, question in zip(words, batch.questions, strict=True)
    ]
    return without_world(replace(batch, questions=questions))


def foreseen_first(words: str, text: str) -> str:
    return FORESEEN.format(words=words, question=text)


def reworded(question: Question, change: Callable[[str], str]) -> Question:
    """A question, or a chat's last question, with its text changed."""
    return change(question) if isinstance(question, str) else question.changed(change)


def zero_latents(batch: Batch) -> Tensor:
    """Zero latents (n, C, P + 1 + N, h, w); their shape needs the encoder only, no rollout."""
    n, C, present, h, w = batch.imagination.latents(batch.world_images, 0, batch.seed).shape
    return torch.zeros(n, C, present + batch.num_world_steps, h, w)


def zero(batch: Batch) -> Batch:
    return replace(batch, world_latents=zero_latents(batch))


def dummy(batch: Batch) -> Batch:
    latents = zero_latents(batch)
    return replace(batch, world_latents=latents, world_tokens=batch.imagination.tokens(latents, "dummy", batch.seed))


def random_projection(batch: Batch) -> Batch:
    imagined = fused(batch)
    assert imagined.world_latents is not None
    tokens = batch.imagination.tokens(imagined.world_latents, "random", batch.seed)
    return replace(imagined, world_tokens=tokens)


def shuffled(batch: Batch) -> Batch:
    return replace(batch, world_latents=batch.imagined(batch.other_images))


def wrong_future(batch: Batch) -> Batch:
    present = batch.imagination.latents(batch.world_images, 0, batch.seed)  # does not depend on the rollout
    others = batch.imagined(batch.other_images)
    future = others[:, :, others.shape[2] - batch.num_world_steps :]
    return replace(batch, world_latents=torch.cat([present, future], dim=2))


def oracle_future(batch: Batch) -> Batch:
    if any(len(images) > 1 for images in batch.world_images):
        raise ValueError("A question has one true future, and this model imagines one for each of several images.")
    latents = batch.imagination.true_latents(batch.items, batch.num_world_steps)
    return replace(batch, world_latents=latents)


def imagined_image(batch: Batch) -> Batch:
    latents = batch.imagined(batch.world_images)
    count = batch.imagination.model.config.world_config.temporal_factor * batch.num_world_steps
    frames = iter([own[len(own) - count :] for own in batch.imagination.frames(latents)])
    futures = [[frame for _ in images for frame in next(frames)] for images in batch.world_images]
    return future_as_images(batch, futures, "is imagined to happen next")


def true_image(batch: Batch) -> Batch:
    config = batch.imagination.model.config
    futures = [list(true_frames(item, 2, config, batch.num_world_steps)[1:]) for item in batch.items]
    return future_as_images(batch, futures, "happens next")


def future_as_images(batch: Batch, futures: Sequence[list[Any]], event: str) -> Batch:
    """Frames of the future as further input images, with the world model disabled.

    Where items have a `now_form`, that question is asked about the last frame alone. Otherwise the last frame of each
    world step follows the images of the present, and a sentence introduces both.

    Args:
        event: completes "Picture 2 shows what …".
    """
    has_now_form = {item.now_form is not None for item in batch.items}
    if has_now_form == {True}:
        texts = [item.now_form for item in batch.items if item.now_form is not None]
        return without_world(replace(batch, images=[[future[-1]] for future in futures], questions=texts))
    if len(has_now_form) == 2:
        raise ValueError("Some questions of this batch have a now_form and some have none; evaluate them separately.")
    factor = batch.imagination.model.config.world_config.temporal_factor
    images, questions = [], []
    for present, future, text in zip(batch.images, futures, batch.questions, strict=True):
        steps = future[factor - 1 :: factor][: batch.num_world_steps]
        if not steps:
            raise ValueError("A future that is shown as images needs 1 world step or more; increase the world steps.")
        images.append([*present, *steps])
        first = introduce(1, len(present), "what is there now")
        then = introduce(len(present) + 1, len(images[-1]), f"what {event}, in order of time")
        more = text if isinstance(text, str) else text.with_images(len(steps))
        questions.append(reworded(more, partial(introduced, f"{first} {then}")))
    return without_world(replace(batch, images=images, questions=questions))


def introduced(sentences: str, text: str) -> str:
    return f"{sentences}\n\n{text}"


def futures_arm(count: int) -> Arm:
    meaning = f"the mean probabilities of the answers from {count} imagined futures"
    return Arm(meaning, fused, needs_trained_projector=True, strategy=over_futures(count))


def averaged_arm(count: int) -> Arm:
    return Arm(f"world tokens of the mean of {count} imagined futures", averaged(count), needs_trained_projector=True)


OVER_FUTURES: dict[str, Callable[[int], Arm]] = {"futures": futures_arm, "averaged": averaged_arm}

ARMS: dict[str, Arm] = {
    # interventions: the same weights with another input
    "fused": Arm("the model with its imagined future", fused, needs_trained_projector=True),
    "fused-0": Arm(
        "the same weights, world tokens of the present only (0 world steps)",
        fused_0,
        needs_trained_projector=True,
        looks_ahead=False,
    ),
    "no-world": Arm("the same weights without world tokens", without_world, needs_world=False, looks_ahead=False),
    "gemma": Arm(
        "the base Gemma model: world model and LoRA disabled",
        gemma,
        needs_world=False,
        looks_ahead=False,
        needs_base_gemma=True,
    ),
    "verbal": Arm(
        "the base Gemma model first describes what happens next; world model disabled",
        verbal,
        needs_world=False,
        looks_ahead=False,
        needs_base_gemma=True,
    ),
    "imagined-image": Arm("the decoded last imagined frame as an input image, world model disabled", imagined_image),
    "true-image": Arm("the true last frame as an input image, world model disabled", true_image, needs_world=False),
    "shuffled": Arm("world tokens of another image", shuffled, needs_trained_projector=True, reads_others=True),
    "wrong-future": Arm(
        "tokens of the present from its own image, of the future from another",
        wrong_future,
        needs_trained_projector=True,
        reads_others=True,
    ),
    "zero": Arm("world tokens of all-zero latents", zero, needs_trained_projector=True),
    "dummy": Arm("one constant token in every position between the boundaries", dummy, needs_trained_projector=True),
    "random-projection": Arm("its imagined future through an untrained projector", random_projection),
    "oracle-future": Arm("world tokens of the true future", oracle_future, needs_trained_projector=True),
    "futures-8": futures_arm(8),
    "averaged-8": averaged_arm(8),
    "gated": Arm(
        "its imagined future only where the answer without one is not sure, and if it agrees with the present",
        fused,
        needs_trained_projector=True,
        strategy=gated,
    ),
    # trained controls: weights of their own, by the same recipe with one flag changed
    "matched-control": Arm(
        "trained on the same labels by the same recipe, without world tokens",
        without_world,
        weights="matched-control",
        needs_world=False,
        looks_ahead=False,
    ),
    "direct": Arm(
        "trained on the same labels without world tokens, vision and language trainable",
        without_world,
        weights="direct",
        needs_world=False,
        looks_ahead=False,
    ),
    "trained-dummy": Arm(
        "trained and evaluated with tokens that are the same for all images", zero, weights="trained-dummy"
    ),
    "trained-oracle": Arm(
        "trained and evaluated with true futures", oracle_future, weights="trained-oracle", needs_trained_projector=True
    ),
    "frozen-random-projection": Arm(
        "trained with a frozen, untrained projector", fused, weights="frozen-random-projection"
    ),
}


def choose(names: Sequence[str]) -> dict[str, Arm]:
    """The named arms, in order; `all` selects every entry of ARMS.

    Raises:
        ValueError: if a name is unknown, or there is none.
    """
    if list(names) == ["all"]:
        return dict(ARMS)
    if not names:
        raise ValueError(f"No arm was named; choose one or more of {', '.join(ARMS)}.")
    return {name: arm_named(name) for name in names}


def arm_named(name: str) -> Arm:
    """An entry of ARMS, or `futures-K` or `averaged-K` with another number."""
    if name in ARMS:
        return ARMS[name]
    if match := re.fullmatch(r"(futures|averaged)-(\d+)", name):
        count = int(match[2])
        if not 2 <= count <= MAX_FUTURES:
            raise ValueError(f"The arm {name!r} would imagine {count} futures; choose from 2 to {MAX_FUTURES}.")
        return OVER_FUTURES[match[1]](count)
    raise ValueError(f"There is no arm {name!r}; {suggest(name, ARMS)}")
