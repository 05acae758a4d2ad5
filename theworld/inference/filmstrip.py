"""Mode `frames`: past and imagined frames as further images, with sentences that say which is which.

The sentences are part of prompts that models were evaluated and trained with, so their wording must not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from theworld.media.inputs import ImageOrVideo, LoadedImages
from theworld.media.video import Video
from theworld.model.processing import TheWorldProcessor


def introduce(first: int, last: int, content: str) -> str:
    """The sentence that introduces the images numbered `first` to `last` of a question."""
    subject = f"Picture {first} shows" if first == last else f"Pictures {first} to {last} show"
    return f"{subject} {content}."


def filmstrip(
    now: Sequence[Any], before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]], question: str
) -> tuple[list[Any], str]:
    """The images of one question in the order in which they are shown, and the question with their introduction.

    A single image is placed between its past and its future. Several images come first, so that the question can refer
    to them by their numbers, and are followed by the frames of each.

    Args:
        now: the question's own images; at least one.
        before, after: past frames and imagined frames of the first images of `now`, one list per image, in order of
            time.
    """
    images: list[Any] = []
    sentences: list[str] = []

    def show(frames: Sequence[Any], content: str) -> None:
        if frames:
            sentences.append(introduce(len(images) + 1, len(images) + len(frames), content))
            images.extend(frames)

    if len(now) == 1:
        show(before[0], "what was there before, in order of time")
        show(now, "what is there now")
        show(after[0], "what is imagined to happen next, in order of time")
    else:
        show(now, "what is there now")
        for number, (past, future) in enumerate(zip(before, after, strict=True), start=1):
            show(past, f"what was there before picture {number}, in order of time")
            show(future, f"what is imagined to happen after picture {number}, in order of time")
    return images, f"{' '.join(sentences)}\n\n{question}"


def filmstrips(
    processor: TheWorldProcessor,
    images: Sequence[Sequence[ImageOrVideo]],
    chosen: Sequence[Sequence[ImageOrVideo]],
    futures: Sequence[Sequence[Any]],
    questions: Sequence[str],
) -> tuple[LoadedImages, list[str]]:
    """`filmstrip` for each question of a batch.

    Args:
        images: images and videos of each question.
        chosen: those of them whose future was imagined.
        futures: for each chosen image, in order, the last frame of each imagined world step.
    """
    factor = processor.config.world_config.temporal_factor
    remaining = iter(futures)
    shown, texts = [], []
    for row, looked_at, question in zip(images, chosen, questions, strict=True):
        now = [image.now if isinstance(image, Video) else image for image in row]
        before = [processor.frames_of(image)[:-1:factor] for image in looked_at]
        strip, text = filmstrip(now, before, [next(remaining) for _ in looked_at], question)
        shown.append(strip)
        texts.append(text)
    return LoadedImages(shown), texts
