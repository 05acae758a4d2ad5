"""What lmms-eval asks, as TheWorld is asked: pictures first, then one text, and how the answer is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theworld.datasets.multiple_choice import SHOWN_FRAMES
from theworld.media.images import load_image
from theworld.media.video import FRAME_FILES, Video

MAX_NEW_TOKENS = 1024  # of tasks that do not say
FOLLOWED = ("max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams", "image_aspect_ratio")


@dataclass(frozen=True)
class Writing:
    """How a task wants its answers written: questions of equal settings share a batch.

    Attributes:
        temperature: 0 is greedy.
        stops: an answer ends before the first of these.
        ignored: settings of the task that TheWorld does not follow.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Writing:
        """From a task's `generation_kwargs`."""
        sampled = settings.get("do_sample") is not False
        until = settings.get("until") or ()
        ignored = [name for name in settings if name not in FOLLOWED]
        ignored += ["num_beams"] if (settings.get("num_beams") or 1) > 1 else []
        return cls(
            max_new_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
            temperature=float(settings.get("temperature") or 0.0) if sampled else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
            # lmms-eval adds an empty line where a task names no stop, which would cut reasoning off before its answer
            stops=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop.strip(" \n")),
            ignored=tuple(sorted(ignored)),
        )

    def cut(self, text: str) -> str:
        """`text` up to the first stop in it."""
        ends = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        return text[: min(ends, default=len(text))].strip()


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        pictures: what is shown, decoded, in order; of a video, some of its frames.
        text: the prompt.
        now: place among the pictures of a video's last frame, from which the world model looks ahead; None without one.
    """

    pictures: list[Any]
    text: str
    now: int | None = None

    def seen(self, every: bool) -> list[Any]:
        """The pictures that the world model looks ahead from, as `Item.looks_from` has it."""
        if self.now is not None:
            return [self.pictures[self.now]]  # the frames before are not now
        return self.pictures if every else self.pictures[:1]


def read_messages(messages: Iterable[Mapping[str, Any]]) -> Asked:
    """A chat of lmms-eval as one question.

    TheWorld is asked with the pictures before the text. Where a chat has text before a picture, the text says
    `(picture 2)` in its place.

    Raises:
        ValueError: more than one turn, a sound, or pictures and videos that cannot be read.
    """
    pictures: list[Any] = []
    texts: dict[str, list[str]] = {"system": [], "user": []}
    now: int | None = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in texts or texts["user"]:
            raise ValueError("a task asks with several turns in one chat, and TheWorld answers one question at a time.")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts[role].append(part["text"])
                continue
            first = len(pictures) + 1
            pictures += pictures_of(part)
            now = len(pictures) - 1 if part["type"] == "video" else now
            if "".join(texts["user"]).strip():
                names = f"picture {first}" if first == len(pictures) else f"pictures {first} to {len(pictures)}"
                texts["user"].append(f"({names})\n")
    system = "".join(texts["system"])
    # the empty line is how Gemma's own template puts a system prompt before the question
    return Asked(pictures, (system + "\n\n" if system else "") + "".join(texts["user"]), now)


def pictures_of(part: Mapping[str, Any]) -> list[Any]:
    """The pictures of one part of a chat: one, or some frames of a video."""
    kind, source = part["type"], part["url"]
    if kind == "image":
        return [load_image(source)]
    if kind != "video":
        raise ValueError(f"a task asks about {kind}, and TheWorld reads pictures, videos and text.")
    if isinstance(source, Mapping) or part.get("start_time") is not None or part.get("end_time") is not None:
        raise ValueError("a task asks about a part of a video by its time, and TheWorld reads whole videos.")
    if isinstance(source, str | os.PathLike):
        return list(Video(Path(source), SHOWN_FRAMES).load().frames)
    raise ValueError(
        f"a task gives a video as {type(source).__name__}, and TheWorld reads files and folders of frames."
    )


def read_visuals(visuals: Sequence[Any] | None, text: str) -> Asked:
    """What a task gives without a chat: pictures and names of files, and a prompt."""
    parts = [{"type": kind_of(visual), "url": visual} for visual in visuals or ()]
    return read_messages([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


def kind_of(visual: Any) -> str:
    """`image` or `video`: of a file by its name."""
    if isinstance(visual, Mapping):
        return str(visual.get("type", "audio"))  # an array and its rate
    is_video = isinstance(visual, str | os.PathLike) and Path(visual).suffix.lower() not in FRAME_FILES
    return "video" if is_video else "image"
