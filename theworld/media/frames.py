"""Decoded frames of a video -> RGB images: upright, mirrored where they are to be, with transparency over white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from theworld.media.files import decoding
from theworld.media.images import to_rgb

if TYPE_CHECKING:
    import av

# How a video's display matrix turns and mirrors its frames; some programs write a matrix of zeros.
TURNS = {
    (1, 0, 0, 1): None,
    (0, 0, 0, 0): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def to_images(frames: Sequence[av.VideoFrame], name: str) -> list[Image.Image]:
    """Decoded frames in RGB and upright, with transparency laid over white."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: each has a buffer of its own
    with decoding(name):
        small = reformatter.reformat(frames[0], 16, 16, "gray")
    turn = _turn(small, name)
    images = []
    for frame in frames:
        with decoding(name):
            if any(component.is_alpha for component in frame.format.components):
                image = to_rgb(Image.fromarray(reformatter.reformat(frame, format="rgba").to_ndarray()), name)
            else:
                image = reformatter.reformat(frame, format="rgb24").to_image()
        images.append(image if turn is None else image.transpose(turn))
    return images


def _turn(frame: av.VideoFrame, name: str) -> Image.Transpose | None:
    """How a video is turned and mirrored, read from a small copy of its first frame.

    A frame whose side data was read is not freed before the garbage collector runs.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    matrix = np.frombuffer(side_data, np.int32)[[0, 1, 3, 4]].astype(float)  # x' = m0 x + m2 y, y' = m1 x + m3 y
    turn = tuple(np.rint(matrix / max(np.abs(matrix).max(), 1)).astype(int).tolist())
    if turn not in TURNS:
        raise ValueError(
            f"{name} is to be shown turned by {frame.rotation}°, and only quarter turns are read: save it upright."
        )
    return TURNS[turn]
