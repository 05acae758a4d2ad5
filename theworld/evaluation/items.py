"""What a benchmark asks: pictures, one question, one answer, and what happened next where that is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.evaluation.answer_parser import LETTERS
from theworld.media.images import load_image
from theworld.media.video import Video

HIDDEN = ""  # the answer of a question whose truth is not published


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        family: what the scores are broken down by; a sub-task.
        topic: what is asked.
        form: "free" or "choice".
        image: the picture, in any form `theworld.media.images` takes, a tuple or list of them, or a `Video`, whose last
            frame is now.
        question: the full prompt text.
        answer: the exact right answer, for `choices` its letter; HIDDEN where nobody knows it.
        legal: every answer that would be understood; anything else counts as wrong and as unparsed.
        now_form: the same question about the last picture as a state, or None.
        frames: what really happened, pictures from now on at the world model's rate, (F, H, W, 3); or None.
        future: the same without now, as pictures or a video that are read when somebody looks; or None.
        choices: the words of choice A, B, …: answers are then read by `read_choice`. Empty: answers must match exactly.
        horizon: world steps until the outcome can be seen, or None where that is not known.
    """

    id: str
    family: str
    topic: str
    form: str
    image: Any
    question: str
    answer: str
    legal: frozenset[str] = frozenset()
    now_form: str | None = None
    frames: np.ndarray | None = None
    future: tuple[Any, ...] | Video | None = None
    choices: tuple[str, ...] = ()
    horizon: int | None = None

    def pictures(self) -> list[Any]:
        """What is shown, in order; of a video, some of its frames."""
        return _frames_of(self.image)

    def looks_from(self, every: bool, pictures: Sequence[Any] | None = None) -> list[Any]:
        """The pictures that the world model looks ahead from: the first (of a video the last), or each with `every`.

        Args:
            pictures: those of the item, where they have been read already.
        """
        pictures = self.pictures() if pictures is None else list(pictures)
        if isinstance(self.image, Video):
            return [pictures[-1]]  # the frames before are not now
        return pictures if every else pictures[:1]

    def true_frames(self) -> Sequence[Any] | np.ndarray:
        """What really happened, from now on; empty where nobody knows."""
        if self.future is None:
            return () if self.frames is None else self.frames
        return [self.looks_from(every=False)[0], *_frames_of(self.future)]

    @property
    def options(self) -> tuple[str, ...]:
        """The answers between which likelihood decides: the letters of the choices, or all legal answers."""
        if self.form == "choice" and self.choices:
            return tuple(LETTERS[: len(self.choices)])
        return self.choices or tuple(sorted(self.legal))


def _frames_of(images: Any) -> list[Any]:
    """An image, or the images of a list, with the selected frames of each video in its place."""
    entries = list(images) if isinstance(images, list | tuple) else [images]
    frames = [entry.load().frames if isinstance(entry, Video) else (entry,) for entry in entries]
    return [frame for entry in frames for frame in entry]


def picture_key(image: Any) -> str:
    """Names a picture by what it shows: equal pixels, equal key."""
    pixels = np.asarray(load_image(image))
    return hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).hexdigest()


def fingerprint(items: Sequence[Item]) -> str:
    """Names a set of questions by ids, wording, choices and answers, in order; pictures go by the ids."""
    asked = [[item.id, item.question, list(item.choices), item.answer] for item in items]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()


def check_items(items: Sequence[Item]) -> None:
    """Raises a ValueError for questions that cannot be scored apart: none, ids given twice, an answer outside."""
    if not items:
        raise ValueError("there is no question to ask; check the split, the tasks and the data.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"two questions have the id {item.id!r}; give each its own.")
        seen.add(item.id)
        if item.choices and item.answer != HIDDEN and item.answer not in tuple(LETTERS[: len(item.choices)]):
            raise ValueError(f"{item.id}: the answer {item.answer!r} is none of its {len(item.choices)} choices.")


def other_pictures(items: Sequence[Item], seed: int, every: bool = False) -> list[list[Any]]:
    """For each picture that an item looks ahead from, another item's: of its family where that has two, else of any.

    Every picture gets one other picture, drawn with `seed`; no picture gets itself.

    Args:
        every: as in `Item.looks_from`.

    Raises:
        ValueError: there is only one picture in all.
    """
    pictures = [[(picture_key(picture), picture) for picture in item.looks_from(every)] for item in items]
    families: dict[str, dict[str, Any]] = {}
    everything: dict[str, Any] = {}
    for own, item in zip(pictures, items, strict=True):
        families.setdefault(item.family, {}).update(own)
        everything.update(own)
    if len(everything) < 2:
        raise ValueError("another picture's future needs a second picture; ask more questions (--limit).")
    following = {name: _cycle(pictures, seed) for name, pictures in families.items() if len(pictures) > 1}
    following_any = _cycle(everything, seed)
    return [
        [everything[following.get(item.family, following_any)[key]] for key, _ in own]
        for own, item in zip(pictures, items, strict=True)
    ]


def _cycle(pictures: dict[str, Any], seed: int) -> dict[str, str]:
    """One cycle through all pictures in random order: nobody comes after itself."""
    order = [sorted(pictures)[i] for i in np.random.default_rng(seed).permutation(len(pictures))]
    return dict(zip(order, [*order[1:], order[0]], strict=True))
