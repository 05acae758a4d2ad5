"""What a benchmark asks: one picture, one question, one answer, and what happened next where that is known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.images import load_image


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        family: what the scores are broken down by.
        topic: what is asked.
        form: "free" or "choice".
        image: the picture, in any form `theworld.images` takes.
        question: the full prompt text.
        answer: the exact right answer.
        legal: every answer that would be understood; anything else counts as wrong and as unparsed.
        now_form: the same question about the last picture as a state, or None.
        frames: (F, H, W, 3) uint8, what really happened, or None.
    """

    id: str
    family: str
    topic: str
    form: str
    image: Any
    question: str
    answer: str
    legal: frozenset[str]
    now_form: str | None = None
    frames: np.ndarray | None = None


def picture_key(image: Any) -> str:
    """Names a picture by what it shows: equal pixels, equal key."""
    pixels = np.asarray(load_image(image))
    return hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).hexdigest()


def other_pictures(items: Sequence[Item], seed: int) -> list[Any]:
    """For each item the picture of another one: of its family where the family has two pictures, else of any.

    Every picture gets one other picture, drawn with `seed`; no picture gets itself.

    Raises:
        ValueError: there is only one picture in all.
    """
    keys = [picture_key(item.image) for item in items]
    families: dict[str, dict[str, Any]] = {}
    everything: dict[str, Any] = {}
    for key, item in zip(keys, items, strict=True):
        families.setdefault(item.family, {})[key] = item.image
        everything[key] = item.image
    if len(everything) < 2:
        raise ValueError("another picture's future needs a second picture; ask more questions (--limit).")
    following = {name: _cycle(pictures, seed) for name, pictures in families.items() if len(pictures) > 1}
    following_any = _cycle(everything, seed)
    return [everything[following.get(item.family, following_any)[key]] for key, item in zip(keys, items, strict=True)]


def _cycle(pictures: dict[str, Any], seed: int) -> dict[str, str]:
    """One cycle through all pictures in random order: nobody comes after itself."""
    order = [sorted(pictures)[i] for i in np.random.default_rng(seed).permutation(len(pictures))]
    return dict(zip(order, [*order[1:], order[0]], strict=True))
