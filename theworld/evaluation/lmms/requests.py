"""Requests of lmms-eval in the form that TheWorld takes: images, then one text, and how to decode the answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theworld.datasets.multiple_choice import SHOWN_FRAMES
from theworld.media.animations import load_still
from theworld.media.video import FRAME_FILES, Video

MAX_NEW_TOKENS = 1024  # of tasks that do not set it
SUPPORTED = ("max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams", "image_aspect_ratio")


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of a task; questions with equal settings share a batch.

    Attributes:
        temperature: 0 means greedy decoding.
        stops: an answer ends before the first of these strings.
        ignored: settings of the task that TheWorld does not support.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Decoding:
        """From a task's `generation_kwargs`."""
        sampled = settings.get("do_sample") is not False
        until = settings.get("until") or ()
        ignored = [name for name in settings if name not in SUPPORTED]
        ignored += ["num_beams"] if (settings.get("num_beams") or 1) > 1 else []
        return cls(
            max_new_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
            temperature=float(settings.get("temperature") or 0.0) if sampled else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
            # lmms-eval adds an empty line if a task sets no stop string, which would truncate reasoning
            stops=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop.strip(" \n")),
            ignored=tuple(sorted(ignored)),
        )

    def truncate(self, text: str) -> str:
        """`text` up to its first stop string."""
        ends = [position for position in (text.find(stop) for stop in self.stops) if position >= 0]
        return text[: min(ends, default=len(text))].strip()


@dataclass(frozen=True)
class Prompt:
    """One question."""

    images: list[Any]  # decoded, in order; of a video, some of its frames
    text: str
    now: int | None = None  # index of a video's last frame in `images`, from which the world model starts

    def world_images(self, use_all: bool) -> list[Any]:
        """The images that the world model starts from, as in `Item.world_images`."""
        if self.now is not None:
            return [self.images[self.now]]  # earlier frames are not the present
        return self.images if use_all else self.images[:1]


def read_messages(messages: Iterable[Mapping[str, Any]]) -> Prompt:
    """A chat of lmms-eval as one question.

    TheWorld takes the images before the text. Where a chat has text before an image, the text gets `(picture 2)` in the
    image's position.

    Raises:
        ValueError: if there is more than one turn or an audio part, or images or videos cannot be read.
    """
    images: list[Any] = []
    texts: dict[str, list[str]] = {"system": [], "user": []}
    now: int | None = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in texts or texts["user"]:
            raise ValueError("The task has several turns in one chat, and TheWorld answers one question at a time.")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts[role].append(part["text"])
                continue
            first = len(images) + 1
            images += images_of(part)
            now = len(images) - 1 if part["type"] == "video" else now
            if "".join(texts["user"]).strip():
                names = f"picture {first}" if first == len(images) else f"pictures {first} to {len(images)}"
                texts["user"].append(f"({names})\n")
    system = "".join(texts["system"])
    # Gemma's own template puts a system prompt and an empty line before the question
    return Prompt(images, (system + "\n\n" if system else "") + "".join(texts["user"]), now)


def images_of(part: Mapping[str, Any]) -> list[Any]:
    """The images of one part of a chat: one, or some frames of a video."""
    kind, source = part["type"], part["url"]
    if kind == "image":
        return [load_still(source)]
    if kind != "video":
        raise ValueError(f"The task contains {kind}, and TheWorld reads images, videos and text.")
    if isinstance(source, Mapping) or part.get("start_time") is not None or part.get("end_time") is not None:
        raise ValueError("The task uses a time range of a video, and TheWorld reads complete videos.")
    if isinstance(source, str | os.PathLike):
        return list(Video(Path(source), SHOWN_FRAMES).load().frames)
    raise ValueError(
        f"The task gives a video as {type(source).__name__}, and TheWorld reads files and folders of frames."
    )


def read_visuals(visuals: Sequence[Any] | None, text: str) -> Prompt:
    """The input of a task without a chat: images and file names, and a prompt."""
    parts = [{"type": kind_of(visual), "url": visual} for visual in visuals or ()]
    return read_messages([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


def kind_of(visual: Any) -> str:
    """`image` or `video`; of a file by its extension."""
    if isinstance(visual, Mapping):
        return str(visual.get("type", "audio"))  # an array and its sampling rate
    is_video = isinstance(visual, str | os.PathLike) and Path(visual).suffix.lower() not in FRAME_FILES
    return "video" if is_video else "image"
