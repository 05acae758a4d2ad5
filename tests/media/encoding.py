"""Small image and video files, and what every error message must look like."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def animation(frames: Sequence[np.ndarray], file_format: str, **options: object) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    return encode(first, file_format, save_all=True, append_images=others, lossless=True, **options)


def encode_video(
    frames: Sequence[np.ndarray],
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] | None = None,
    times: Sequence[int] | None = None,
    per_second: int = 8,
    codec_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A video file of frames (H, W, 3 or 4) uint8; `options` are the container's.

    Args:
        size: height and width of the video; None for those of the frames.
        times: of the frames, in parts of a second; None for 0, 1, 2, …
        per_second: how many parts a second has.
    """
    import av

    with (
        tempfile.NamedTemporaryFile() as file,  # since FFmpeg opens some by their name once more
        av.open(file.name, "w", format=container, options=options) as output,
    ):
        stream = output.add_stream(codec, rate=per_second, options=codec_options or {})
        stream.height, stream.width = size or frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, per_second)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert type(error.value) in (ValueError, FileNotFoundError), "no private class in a traceback"
    return text
