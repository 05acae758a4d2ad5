"""Frames of a video file, from one frame on."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np


def read_frames(path: str | os.PathLike[str], first: int = 0, stride: int = 1, most: int | None = None) -> np.ndarray:
    """Frames first, first + stride, … of a GIF, MP4 or other video, at most `most`: uint8 (F, H, W, 3), F ≥ 1.

    Raises:
        ValueError: no such file, no video, or one that ends before `first`.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no video {path}; check the path.")
    frames: list[np.ndarray] = []
    number = -1
    try:
        for number, frame in enumerate(iio.imiter(Path(path), plugin="pyav")):
            if number >= first and (number - first) % stride == 0:
                frames.append(frame[..., :3])
            if len(frames) == most:
                break
    except (OSError, ValueError, IndexError, RuntimeError) as error:  # what imageio's plugins raise on broken files
        raise ValueError(f"{path} is no video that can be read ({error}); give a GIF or an MP4.") from error
    if not frames:
        raise ValueError(f"{path} has {number + 1} frames, so there is no frame {first}.")
    return np.stack(frames)
