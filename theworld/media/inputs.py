"""What a caller passes as the images of one or several prompts, decoded once and grouped by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from PIL import Image

from theworld.media.images import is_array, load_images, load_numbered
from theworld.media.video import Video
from theworld.messages import counted

ImageOrVideo: TypeAlias = Image.Image | Video  # an image of now, or a video that ends now


class LoadedImages(list[list[ImageOrVideo]]):
    """The decoded images and videos of each prompt, which `group_images` and the processor do not decode again."""


def group_images(
    images: Any, text: str | Sequence[str] | None, read_video: Callable[[Video], Video] = Video.load
) -> LoadedImages:
    """Decodes the images and videos of each prompt and returns one list per prompt; `LoadedImages` are returned as is.

    Args:
        images: for one prompt an image, a `Video` or a list of them; for several, one entry (or list) per prompt. A
            batch in one tensor (B, C, H, W) or array (B, H, W, C) is a list of B images. None: no images.
        text: one prompt or several; None counts as one, unless `images` is a list of lists.
        read_video: loads a video; `TheWorldConfig.read_video` as the world model reads it.
    """
    nested = isinstance(images, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in images)
    if text is None or isinstance(text, str):
        count = len(images) if nested and text is None else 1
    else:
        count = len(text)
    if images is None:
        return LoadedImages([] for _ in range(count))
    if count == 1 and not nested:
        return LoadedImages([_load_entry(images, read_video)])
    entries = list(images) if isinstance(images, (list, tuple)) or is_array(images) else [images]
    if len(entries) != count:
        given, asked = counted(len(entries), "image entry", "image entries"), counted(count, "question")
        raise ValueError(f"Got {given} for {asked}: pass one image (or list of images) per question.")
    if isinstance(images, LoadedImages):
        return images
    return LoadedImages(_load_entry(entry, read_video) for entry in entries)


def _load_entry(images: Any, read_video: Callable[[Video], Video]) -> list[ImageOrVideo]:
    """Decodes the images and videos of one prompt."""
    if images is None:
        return []
    if isinstance(images, Video):
        return [read_video(images)]
    if not isinstance(images, (list, tuple)):
        return list(load_images(images))
    return [
        read_video(image) if isinstance(image, Video) else load_numbered(image, number, len(images))
        for number, image in enumerate(images, start=1)
    ]
