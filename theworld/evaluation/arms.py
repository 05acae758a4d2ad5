"""Arms: ways to run the same questions, each one function from Batch to Batch and one line of ARMS.

An arm changes what the model is given (its picture, its question, its world latents) or which trained weights answer;
the questions, their order and how answers are read stay the same, so that arms can be compared question by question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theworld.evaluation.items import Item, picture_key

if TYPE_CHECKING:
    from theworld.api import TheWorld


class Imagination:
    """Rollouts of one model, each made once a picture, number of steps and seed, and shared by all arms.

    Args:
        model: imagines, encodes and decodes.
    """

    def __init__(self, model: TheWorld) -> None:
        self.model = model
        self._latents: dict[tuple[str, int, int], Tensor] = {}

    def latents(self, images: Sequence[Any], num_world_steps: int, seed: int) -> Tensor:
        """(n, C, 1 + num_world_steps, h, w) on the CPU: now and the imagined next moments of each picture."""
        keys = [(picture_key(image), num_world_steps, seed) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in self._latents}
        if missing:
            made = self.model.imagine(list(missing.values()), num_world_steps, seed=seed).cpu()
            self._latents.update(zip(missing, made, strict=True))
        return torch.stack([self._latents[key] for key in keys])

    def last_frames(self, images: Sequence[Any], num_world_steps: int, seed: int) -> list[Any]:
        """The last imagined frame of each picture, (H, W, 3) uint8, as a person would see it."""
        return list(self.model.decode(self.latents(images, num_world_steps, seed), for_people=False)[:, -1])

    def true_latents(self, items: Sequence[Item], num_world_steps: int) -> Tensor:
        """(n, C, 1 + num_world_steps, h, w) on the CPU, of what really happened."""
        count = self.model.config.num_pixel_frames(num_world_steps)
        return torch.cat([self.model.encode(list(true_frames(item, count)[:count])).cpu() for item in items])


@dataclass(frozen=True)
class Batch:
    """What the model is about to be asked.

    Attributes:
        images: one picture a question.
        questions: prompt texts.
        num_world_steps: N, future latent frames.
        seed: another number imagines another future.
        enable_world: False asks without world tokens.
        world_latents: (n, C, T, h, w) to read; None lets the model imagine its own.
        records: the items asked, with the true frames where a benchmark has them.
        others: another item's picture for each.
        imagination: rollouts, shared by the arms of one model.
    """

    images: list[Any]
    questions: list[str]
    num_world_steps: int
    seed: int
    enable_world: bool
    world_latents: Tensor | None
    records: list[Item]
    others: list[Any]
    imagination: Imagination


@dataclass(frozen=True)
class Arm:
    """One way to run an evaluation.

    Attributes:
        meaning: one line for people.
        change: from the plain batch to what this arm asks.
        weights: name of the trained control that answers; None is the model under test.
        reads_tokens: whether the model is given world tokens.
    """

    meaning: str
    change: Callable[[Batch], Batch]
    weights: str | None = None
    reads_tokens: bool = True


def true_frames(item: Item, count: int = 1) -> Any:
    """True frames (F, H, W, 3) of an item; a ValueError where the benchmark has none or too few."""
    if item.frames is None or len(item.frames) < count:
        known = 0 if item.frames is None else len(item.frames)
        raise ValueError(f"{item.id} has {known} true frames and this arm needs {count}; use fewer --steps.")
    return item.frames


def fused(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.images, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=latents)


def fused_0(batch: Batch) -> Batch:
    return fused(replace(batch, num_world_steps=0))


def without_world(batch: Batch) -> Batch:
    return replace(batch, enable_world=False, world_latents=None)


def zero(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.images, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=torch.zeros_like(latents))


def shuffled(batch: Batch) -> Batch:
    latents = batch.imagination.latents(batch.others, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=latents)


def wrong_future(batch: Batch) -> Batch:
    own = batch.imagination.latents(batch.images, batch.num_world_steps, batch.seed)
    others = batch.imagination.latents(batch.others, batch.num_world_steps, batch.seed)
    return replace(batch, world_latents=torch.cat([own[:, :, :1], others[:, :, 1:]], dim=2))


def oracle_future(batch: Batch) -> Batch:
    latents = batch.imagination.true_latents(batch.records, batch.num_world_steps)
    return replace(batch, world_latents=latents)


def imagined_image(batch: Batch) -> Batch:
    pictures = batch.imagination.last_frames(batch.images, batch.num_world_steps, batch.seed)
    return without_world(replace(batch, images=pictures, questions=now_forms(batch.records)))


def true_image(batch: Batch) -> Batch:
    pictures = [true_frames(item)[-1] for item in batch.records]
    return without_world(replace(batch, images=pictures, questions=now_forms(batch.records)))


def now_forms(items: Sequence[Item]) -> list[str]:
    """The items' questions asked about a last picture; a ValueError where a question has no such form."""
    texts = []
    for item in items:
        if item.now_form is None:
            raise ValueError(f"{item.id} cannot be asked of a later picture as a state; leave this arm out.")
        texts.append(item.now_form)
    return texts


ARMS: dict[str, Arm] = {
    "fused": Arm("the model with its imagined future", fused),
    "fused-0": Arm("the same weights, world tokens of now alone (0 world steps)", fused_0),
    "no-world": Arm("the same weights without world tokens", without_world, reads_tokens=False),
    "matched-control": Arm(
        "trained on the same labels by the same recipe without world tokens",
        without_world,
        weights="matched-control",
        reads_tokens=False,
    ),
    "direct": Arm(
        "the same labels, no world tokens, vision and language unfrozen",
        without_world,
        weights="direct",
        reads_tokens=False,
    ),
    "imagined-image": Arm(
        "the decoded last imagined frame as an ordinary picture, world off", imagined_image, reads_tokens=False
    ),
    "true-image": Arm("the true last frame as an ordinary picture, world off", true_image, reads_tokens=False),
    "shuffled": Arm("world tokens of another picture", shuffled),
    "wrong-future": Arm("tokens of now from its own picture, of the future from another", wrong_future),
    "zero": Arm("world tokens of latents that are all zero", zero),
    "oracle-future": Arm("world tokens of what really happened", oracle_future),
}


def choose(names: Sequence[str]) -> dict[str, Arm]:
    """The named arms, in order.

    Raises:
        ValueError: an unknown name, or none.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise ValueError(f"there is no arm {unknown[0]!r}; choose among {', '.join(ARMS)}.")
    if not names:
        raise ValueError(f"name at least one arm of {', '.join(ARMS)}.")
    return {name: ARMS[name] for name in names}
