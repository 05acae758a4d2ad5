"""Animated images: how many frames they have, and when each begins."""

from __future__ import annotations

import io
import itertools
import logging
import os
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from theworld.media.files import ANIMATIONS, decoding, open_image, read_file
from theworld.media.images import load_image
from theworld.media.selection import usual
from theworld.media.streams import open_stream, packets_of

# Milliseconds. Shorter frames of an animation have no time: Pillow writes 0, and 1 into an AVIF, if it is given none.
SHORTEST, USUAL = 2, 100  # and what browsers show the frames of a GIF for that have none

logger = logging.getLogger(__name__)
FIRST_FRAME = "%s has %d frames and is given as an image, so only its first one is read: give animations as videos"
_warned: list[Any] = []  # the first animation that was given as an image


def load_still(source: Any) -> Image.Image:
    """`load_image`, with a warning the first time that a file has several frames, of which the first is read."""
    if isinstance(source, str | os.PathLike) and not _warned and (count := num_frames_of_image(source)) > 1:
        _warned.append(source)
        logger.warning(FIRST_FRAME, source, count)
    return load_image(source)


def num_frames_of_image(path: str | os.PathLike[str]) -> int:
    """How many frames an image file has: 1 unless it is an animation, or if it cannot be read."""

    def count(file: BinaryIO, name: str, num_bytes: int) -> int:
        with open_image(file, name) as image, decoding(name):
            return num_animated(image)

    try:
        return read_file(path, count, "image")
    except (ValueError, FileNotFoundError):  # loading the image reports it
        return 1


def first_frame(image: ImageFile.ImageFile) -> int:
    """1 if the first image is not part of the animation: an APNG may show another one where animations are unknown."""
    return int(getattr(image, "default_image", False))


def num_animated(image: ImageFile.ImageFile) -> int:
    # every format in ANIMATIONS has `n_frames`
    return int(image.n_frames) - first_frame(image) if image.format in ANIMATIONS else 1  # type: ignore[attr-defined]


def times_of(image: ImageFile.ImageFile, num_frames: int, name: str) -> tuple[np.ndarray | None, float]:
    """When each frame of an animation begins, in seconds, and for how long the last one is shown longer than usual.

    None and 0 if the file has no durations.
    """
    durations = []
    for index in range(num_frames):
        with decoding(name):
            image.seek(index + first_frame(image))
            if image.format in ("WEBP", "AVIF"):
                image.load()  # which reads their durations
        durations.append(float(image.info.get("duration") or 0))
    if max(durations) < SHORTEST:
        return None, 0.0
    seconds = np.array([time if time >= SHORTEST else USUAL for time in durations]) / 1000
    return np.cumsum(seconds) - seconds, max(0.0, float(seconds[-1]) - usual(seconds))


def holds_more(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> bool:
    """Whether a TIFF has several pages, or a JPEG file a second image of the same size, as no photo has."""
    if image.format != "JPEG":
        return image.format == "TIFF" and getattr(image, "n_frames", 1) > 1
    with open_stream(file, name, "mjpeg") as container, decoding(name):
        second = [bytes(packet) for packet in itertools.islice(packets_of(container, name), 2)][1:]
    try:
        return bool(second and second[0]) and open_image(io.BytesIO(second[0]), name).size == image.size
    except ValueError:  # some camera's notes
        return False
