"""One question answered twice by the same weights: from the present alone, and from imagined futures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from theworld.inference.clips import describe_clip
from theworld.inference.futures import FutureAnswers
from theworld.inference.options import MAX_NEW_TOKENS
from theworld.inference.pipeline import TheWorld
from theworld.media.export import moment_labels
from theworld.media.inputs import ImageOrVideo
from theworld.media.limits import MediaLimits
from theworld.media.video import Video
from theworld.messages import Progress

MAX_QUESTION = 2000  # characters
MAX_OPTIONS = 12
MAX_FUTURES = 8  # of the page


@dataclass(frozen=True)
class Asked:
    """What a visitor asks.

    Attributes:
        file: an image or a video.
        options: possible answers, whose probabilities are wanted; none groups the answers by their texts.
        seed: of the first future; the others have the next ones.
        world_prompt: text that steers the futures; empty leaves them to the image.
        max_new_tokens: length of an answer, in tokens.
    """

    file: str | None
    question: str
    options: tuple[str, ...] = ()
    num_world_steps: int = 4
    futures: int = 1
    seed: int = 0
    world_prompt: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True)
class Compared:
    """The answers so far.

    Attributes:
        present: the answer without a future.
        imagined: the answers from the futures; None until they were imagined.
        clips: (futures, F, H, W, 3) uint8, for a video with its own frames first; None until they were decoded.
        labels: one per frame of each clip, if they begin with frames that were seen.
    """

    asked: Asked
    present: FutureAnswers
    imagined: FutureAnswers | None = None
    clips: np.ndarray | None = None
    labels: list[str] | None = None


def split_options(text: str) -> tuple[str, ...]:
    """Possible answers, separated by commas.

    Raises:
        ValueError: if there is one only, one twice, or too many.
    """
    options = tuple(option for part in text.split(",") if (option := " ".join(part.split())))
    if len(options) == 1:
        raise ValueError(f"There is only one possible answer, {options[0]}: separate two or more by commas.")
    if len({option.lower() for option in options}) < len(options):
        raise ValueError("A possible answer was given twice: give each one once.")
    if len(options) > MAX_OPTIONS:
        raise ValueError(f"There are {len(options)} possible answers: give at most {MAX_OPTIONS}.")
    return options


def read(file: str | None, model: TheWorld, limits: MediaLimits) -> ImageOrVideo:
    """The image or video of a visitor, decoded within the limits.

    Raises:
        ValueError: if there is none, it cannot be read, or it is too large.
    """
    if not file:
        raise ValueError("There is no image yet: drop one, or choose an example.")
    try:
        return limits.image_or_video(Path(file).read_bytes(), model.config.read_video)
    except FileNotFoundError:
        raise ValueError("The file is no longer on the server: drop it again.") from None


def seen(model: TheWorld, media: ImageOrVideo) -> tuple[np.ndarray, str]:
    """The frames (F, H, W, 3) uint8 that the model reads, of which the last one is now, and a sentence about them."""
    if isinstance(media, Image.Image):
        return np.asarray(media.convert("RGB"))[None], f"Image, {media.width} × {media.height} pixels."
    if not model.config.max_past_steps:
        sentence = f"This model reads images only: it sees the last of the {media.num_frames:,} frames."
        return np.asarray(media.frames[-1].convert("RGB"))[None], sentence
    frames = model.seen(media)
    return frames, describe_clip(media, model.config, (len(frames) - 1) // model.config.world_config.temporal_factor)


def compare(model: TheWorld, asked: Asked, limits: MediaLimits, progress: Progress | None = None) -> Iterator[Compared]:
    """Yields the answer from the present, then also those from imagined futures, and then also their clips.

    Raises:
        ValueError: if something that the visitor gave cannot be used; nothing has been imagined then.
    """
    question = asked.question.strip()
    if not question:
        raise ValueError("There is no question yet: write one, such as what will happen next.")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"The question has {len(question):,} characters: shorten it to {MAX_QUESTION:,}.")
    if not 1 <= asked.futures <= MAX_FUTURES:
        raise ValueError(f"{asked.futures} futures were requested: choose 1 to {MAX_FUTURES}.")
    model.config.check_world_steps(asked.num_world_steps)
    media = read(asked.file, model, limits)
    if isinstance(media, Video) and not model.config.max_past_steps:
        media = media.frames[-1]
    given: dict[str, Any] = {"video": media} if isinstance(media, Video) else {"image": media}
    given |= {"question": question, "options": asked.options, "max_new_tokens": asked.max_new_tokens}
    present = model.ask(**given, num_world_steps=0)
    yield Compared(asked, present)
    imagined = model.ask(
        **given,
        num_world_steps=asked.num_world_steps,
        futures=asked.futures,
        seed=asked.seed,
        world_prompt=asked.world_prompt.strip() or None,
        progress=progress,
    )
    assert imagined.latents is not None
    yield Compared(asked, present, imagined)
    clips, labels, world = model.decode(imagined.latents), None, model.config.world_config
    if isinstance(media, Video) and (past := len(model.seen(media)) - 1):
        before = np.broadcast_to(model.seen(media), (len(clips), past + 1, *clips.shape[2:]))
        clips = np.concatenate([before, clips[:, past + 1 :]], axis=1)
        labels = moment_labels(past, clips.shape[1], world.fps)
    yield Compared(asked, present, imagined, clips, labels)
