"""Small image and video files, and what every error message must look like."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def animation(frames: Sequence[np.ndarray], file_format: str) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    return encode(first, file_format, save_all=True, append_images=others, lossless=True)


def encode_video(
    frames: Sequence[np.ndarray],
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] | None = None,
    **options: str,
) -> bytes:
    """A video file of frames (H, W, 3 or 4) uint8 at 8 frames per second; `options` are the container's.

    Args:
        size: height and width of the video; None for those of the frames.
    """
    import av

    with (
        tempfile.NamedTemporaryFile() as file,  # since FFmpeg opens some by their name once more
        av.open(file.name, "w", format=container, options=options) as output,
    ):
        stream = output.add_stream(codec, rate=8)
        stream.height, stream.width = size or frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for frame in [*frames, None]:
            kind = "rgba" if frame is not None and frame.shape[-1] == 4 else "rgb24"
            output.mux(stream.encode(None if frame is None else av.VideoFrame.from_ndarray(frame, format=kind)))
        output.close()
        return Path(file.name).read_bytes()


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert type(error.value) in (ValueError, FileNotFoundError), "no private class in a traceback"
    return text
