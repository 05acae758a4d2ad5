"""Arms: ways to run the same questions, each one function from Batch to Batch and one line of ARMS.

An arm changes what the model is given (its pictures, its question, its world latents or tokens) or which trained
weights answer; the questions, their order and how answers are read stay the same, so that arms can be compared question
by question. *Interventions* change the input of the weights under test; *trained controls* are weights of their own,
made by one flag of the same recipe.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from theworld.evaluation.answering import Answerer, ReplyInputs
from theworld.evaluation.items import Item, picture_key
from theworld.inference.filmstrip import introduce

FORESEE = "Describe in one sentence what happens next."
FORESEEN = "Foreseen in words: {words}\n\n{question}"
LONGEST_FORESIGHT = 64  # tokens
EVERY = "all"


@dataclass
class Imagination:
    """What arms of one model share: rollouts, made once a picture, number of steps and seed, and picture features.

    Attributes:
        model: imagines, encodes, decodes and describes.
        used: keys of the rollouts asked for since `start`; what they cost stands in `seconds`, whoever made them.
        spent: seconds of imagining since `start`.
    """

    model: Answerer
    spent: float = 0.0
    used: set[tuple[str, int, int]] = field(default_factory=set)
    seconds: dict[tuple[str, int, int], float] = field(default_factory=dict)
    _latents: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    _features: dict[str, Tensor] = field(default_factory=dict)
    _words: dict[str, str] = field(default_factory=dict)

    @property
    def every(self) -> bool:
        """Whether the model looks ahead from each picture of a question, or from one."""
        return bool(self.model.config.world_images == "all")

    def start(self) -> None:
        """Begins the account of another arm."""
        self.used.clear()
        self.spent = 0.0

    def rollout_seconds(self) -> float:
        """What the rollouts asked for since `start` took when they were made."""
        return sum(self.seconds[key] for key in self.used)

    def num_rollouts(self) -> int:
        return sum(steps > 0 for _, steps, _ in self.used)

    def latents(self, pictures: Sequence[Sequence[Any]], num_world_steps: int, seed: int) -> Tensor:
        """(n, C, 1 + num_world_steps, h, w) on the CPU: now and the imagined next moments of each picture.

        Args:
            pictures: those that each question looks ahead from; n is their number in all.
        """
        images = [image for own in pictures for image in own]
        keys = [(picture_key(image), num_world_steps, seed) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in self._latents}
        if missing:
            started = time.perf_counter()
            made = self.model.imagine(list(missing.values()), num_world_steps, seed=seed).cpu()
            seconds = time.perf_counter() - started
            self.spent += seconds
            self.seconds.update(dict.fromkeys(missing, seconds / len(missing)))
            self._latents.update(zip(missing, made, strict=True))
        self.used.update(keys)
        return torch.stack([self._latents[key] for key in keys])

    def frames(self, latents: Tensor) -> list[Any]:
        """Frames (F, H, W, 3) uint8 of each row, as the language model would see them: no person looks."""
        return list(self.model.decode(latents, for_people=False))

    def true_latents(self, items: Sequence[Item], num_world_steps: int) -> Tensor:
        """(n, C, 1 + num_world_steps, h, w) on the CPU, of what really happened."""
        count = self.model.config.num_pixel_frames(num_world_steps)
        return torch.cat([self.model.encode(list(true_frames(item, count)[:count])).cpu() for item in items])

    def tokens(self, latents: Tensor, kind: str, seed: int) -> Tensor:
        """World tokens (n, K, D) on the CPU of a kind that `Answerer.world_tokens` knows."""
        return self.model.world_tokens(latents, kind, seed).cpu()

    def features(self, pictures: Sequence[Sequence[Any]]) -> Tensor:
        """Gemma's soft tokens (pictures, tokens, D), each picture's made once until `forget_features`."""
        images = [image for own in pictures for image in own]
        keys = [picture_key(image) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in self._features}
        if missing:
            self._features.update(zip(missing, self.model.image_features(list(missing.values())), strict=True))
        return torch.stack([self._features[key] for key in keys])

    def forget_features(self) -> None:
        """Between batches: soft tokens of thousands of pictures would fill a GPU."""
        self._features.clear()

    def foreseen(self, pictures: Sequence[Sequence[Any]]) -> list[str]:
        """What Gemma, as it was before training, writes happens next in the pictures of each question."""
        keys = ["/".join(picture_key(image) for image in own) for own in pictures]
        missing = {key: list(own) for key, own in zip(keys, pictures, strict=True) if key not in self._words}
        if missing:
            replies = self.model.reply(
                list(missing.values()),
                [FORESEE] * len(missing),
                max_new_tokens=LONGEST_FORESIGHT,
                inputs=ReplyInputs(enable_world=False, lora=False),
            )
            self._words.update((key, reply.text) for key, reply in zip(missing, replies, strict=True))
        return [self._words[key] for key in keys]


@dataclass(frozen=True)
class Batch:
    """What the model is about to be asked.

    Attributes:
        images: the pictures of each question.
        questions: prompt texts.
        num_world_steps: N, future latent frames.
        seed: another number imagines another future.
        enable_world: False asks without world tokens.
        world_latents: (n, C, T, h, w) to read; None lets the model imagine its own.
        records: the items asked, with the true frames where a benchmark has them.
        seen: the pictures that each question looks ahead from.
        others: for each of those, another item's picture; empty where no arm of the run reads others.
        imagination: rollouts, shared by the arms of one model.
        world_tokens: (n, K, D) to read in place of those that the projector makes of `world_latents`.
        lora: False asks Gemma as it was before training.
    """

    images: list[list[Any]]
    questions: list[str]
    num_world_steps: int
    seed: int
    enable_world: bool
    world_latents: Tensor | None
    records: list[Item]
    seen: list[list[Any]]
    others: list[list[Any]]
    imagination: Imagination
    world_tokens: Tensor | None = None
    lora: bool = True


@dataclass(frozen=True)
class Arm:
    """One way to run an evaluation.

    Attributes:
        meaning: one line for people.
        change: from the plain batch to what this arm asks.
        weights: name of the trained control that answers; None is the model under test.
        reads_tokens: whether the model is given world tokens that its projector must have learned to make.
        needs_world: whether it needs a world model at all.
        looks_ahead: whether it depends on the number of world steps.
        reads_others: whether it needs other items' pictures.
        asks_gemma: whether it needs Gemma as it was before training.
    """

    meaning: str
    change: Callable[[Batch], Batch]
    weights: str | None = None
    reads_tokens: bool = False
    needs_world: bool = True
    looks_ahead: bool = True
    reads_others: bool = False
    asks_gemma: bool = False


def true_frames(item: Item, count: int = 1) -> Any:
    """True frames of an item, from now on; a ValueError where the benchmark has none or too few."""
    frames = item.true_frames()
    if len(frames) < count:
        raise ValueError(
            f"{item.id} has {len(frames)} true frames and this arm needs {count}; use fewer --steps, or leave it out."
        )
    return frames


def fused(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.seen, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=latents)


def fused_0(batch: Batch) -> Batch:
    return fused(replace(batch, num_world_steps=0))


def without_world(batch: Batch) -> Batch:
    return replace(batch, enable_world=False, world_latents=None)


def gemma(batch: Batch) -> Batch:
    return replace(without_world(batch), lora=False)


def verbal(batch: Batch) -> Batch:
    words = batch.imagination.foreseen(batch.images)
    questions = [FORESEEN.format(words=own, question=text) for own, text in zip(words, batch.questions, strict=True)]
    return without_world(replace(batch, questions=questions))


def nothing(batch: Batch) -> Tensor:
    """Zero latents (n, C, 1 + N, h, w) in the place of the batch's own; nothing is imagined for their shape."""
    now = batch.imagination.latents(batch.seen, 0, batch.seed)
    return torch.zeros_like(now).repeat(1, 1, 1 + batch.num_world_steps, 1, 1)


def zero(batch: Batch) -> Batch:
    return replace(batch, world_latents=nothing(batch))


def dummy(batch: Batch) -> Batch:
    latents = nothing(batch)
    return replace(batch, world_latents=latents, world_tokens=batch.imagination.tokens(latents, "dummy", batch.seed))


def random_projection(batch: Batch) -> Batch:
    imagined = fused(batch)
    assert imagined.world_latents is not None
    tokens = batch.imagination.tokens(imagined.world_latents, "random", batch.seed)
    return replace(imagined, world_tokens=tokens)


def shuffled(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.others, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=latents)


def wrong_future(batch: Batch) -> Batch:
    own = batch.imagination.latents(batch.seen, 0, batch.seed)  # now is the same whatever is imagined after it
    others = batch.imagination.latents(batch.others, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=torch.cat([own, others[:, :, 1:]], dim=2))


def oracle_future(batch: Batch) -> Batch:
    if any(len(own) > 1 for own in batch.seen):
        raise ValueError("true futures are known of one picture a question, and this model looks ahead from several.")
    latents = batch.imagination.true_latents(batch.records, batch.num_world_steps)
    return replace(batch, world_latents=latents)


def imagined_image(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.seen, batch.num_world_steps, batch.seed)
    frames = iter(batch.imagination.frames(latents))
    futures = [[frame for _ in own for frame in next(frames)[1:]] for own in batch.seen]
    return shown_future(batch, futures, "is imagined to happen next")


def true_image(batch: Batch) -> Batch:
    futures = [list(true_frames(item, 2)[1:]) for item in batch.records]
    return shown_future(batch, futures, "happens next")


def shown_future(batch: Batch, futures: Sequence[list[Any]], what: str) -> Batch:
    """Frames of the future as ordinary pictures, world off.

    Where a question can be asked of a later picture as a state, it is asked of the last frame alone; else the last
    frame of each world step stands behind the pictures of now, and a sentence says which is which.
    """
    asked_as_state = {item.now_form is not None for item in batch.records}
    if asked_as_state == {True}:
        texts = [item.now_form for item in batch.records if item.now_form is not None]
        return without_world(replace(batch, images=[[future[-1]] for future in futures], questions=texts))
    if len(asked_as_state) == 2:
        raise ValueError(
            "some questions of this batch can be asked of a later picture and some cannot; ask them apart."
        )
    factor = batch.imagination.model.config.world_config.temporal_factor
    images, questions = [], []
    for own, future, text in zip(batch.images, futures, batch.questions, strict=True):
        steps = future[factor - 1 :: factor][: batch.num_world_steps]
        if not steps:
            raise ValueError("a future to show as pictures needs 1 world step or more; use more --steps.")
        images.append([*own, *steps])
        now = introduce(1, len(own), "what is there now")
        after = introduce(len(own) + 1, len(own) + len(steps), f"what {what}, in order of time")
        questions.append(f"{now} {after}\n\n{text}")
    return without_world(replace(batch, images=images, questions=questions))


ARMS: dict[str, Arm] = {
    # interventions: the same weights, given something else
    "fused": Arm("the model with its imagined future", fused, reads_tokens=True),
    "fused-0": Arm(
        "the same weights, world tokens of now alone (0 world steps)", fused_0, reads_tokens=True, looks_ahead=False
    ),
    "no-world": Arm("the same weights without world tokens", without_world, needs_world=False, looks_ahead=False),
    "gemma": Arm("Gemma as it was: world and LoRA off", gemma, needs_world=False, looks_ahead=False, asks_gemma=True),
    "verbal": Arm(
        "Gemma first writes what happens next; world off",
        verbal,
        needs_world=False,
        looks_ahead=False,
        asks_gemma=True,
    ),
    "imagined-image": Arm("the decoded last imagined frame as an ordinary picture, world off", imagined_image),
    "true-image": Arm("the true last frame as an ordinary picture, world off", true_image, needs_world=False),
    "shuffled": Arm("world tokens of another picture", shuffled, reads_tokens=True, reads_others=True),
    "wrong-future": Arm(
        "tokens of now from its own picture, of the future from another",
        wrong_future,
        reads_tokens=True,
        reads_others=True,
    ),
    "zero": Arm("world tokens of latents that are all zero", zero, reads_tokens=True),
    "dummy": Arm("one constant token in every place, between the boundaries", dummy, reads_tokens=True),
    "random-projection": Arm("its imagined future through an untrained projector", random_projection),
    "oracle-future": Arm("world tokens of what really happened", oracle_future, reads_tokens=True),
    # trained controls: weights of their own, by one flag of the same recipe
    "matched-control": Arm(
        "trained on the same labels by the same recipe without world tokens",
        without_world,
        weights="matched-control",
        needs_world=False,
        looks_ahead=False,
    ),
    "direct": Arm(
        "the same labels, no world tokens, vision and language unfrozen",
        without_world,
        weights="direct",
        needs_world=False,
        looks_ahead=False,
    ),
    "trained-dummy": Arm(
        "trained and asked with tokens that are the same for all pictures", zero, weights="trained-dummy"
    ),
    "trained-oracle": Arm(
        "trained and asked with true futures", oracle_future, weights="trained-oracle", reads_tokens=True
    ),
    "frozen-random-projection": Arm(
        "trained behind an untrained, frozen projector", fused, weights="frozen-random-projection"
    ),
}


def choose(names: Sequence[str]) -> dict[str, Arm]:
    """The named arms, in order; `all` names every one.

    Raises:
        ValueError: an unknown name, or none.
    """
    if list(names) == [EVERY]:
        return dict(ARMS)
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], ARMS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose among {', '.join(ARMS)}."
        raise ValueError(f"there is no arm {unknown[0]!r}; {hint}")
    if not names:
        raise ValueError(f"name at least one arm of {', '.join(ARMS)}.")
    return {name: ARMS[name] for name in names}
