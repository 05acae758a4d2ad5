"""Writes rollouts as files: an animated GIF, an MP4, or a strip of frames as PNG, chosen by the extension."""

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from theworld.storage.files import atomic_file

# Frames are enlarged (by integers, pixel for pixel) until their shorter side is about this long.
VISIBLE_SIDE = 256
# The largest width of a strip after enlarging.
STRIP_WIDTH = 2400
STRIP_GAP = 4
# The largest width of a grid of animations after enlarging.
GRID_WIDTH = 1024
# More than any player shows; the held first frame of an MP4 would fill the memory.
MAX_FPS = 1000


def save_rollout(
    frames: np.ndarray,
    path: str | os.PathLike[str],
    fps: float = 16.0,
    *,
    scale: int | None = None,
    hold: float = 0.5,
    labels: Sequence[str] | None = None,
) -> Path:
    """Writes `frames` uint8 (F, H, W, 3) RGB to `path` as .gif, .mp4 or .png, atomically, and returns the path.

    The other arguments and errors are those of `encode_rollout`; a ValueError is also raised if the file cannot be
    written.
    """
    path = Path(os.path.expanduser(path))
    content = encode_rollout(frames, rollout_extension(path), fps, scale=scale, hold=hold, labels=labels)
    try:
        with atomic_file(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): choose another path."
        ) from error
    return path


def encode_rollout(
    frames: np.ndarray,
    extension: str,
    fps: float = 16.0,
    *,
    scale: int | None = None,
    hold: float = 0.5,
    labels: Sequence[str] | None = None,
) -> bytes:
    """The content of a file with `frames` uint8 (F, H, W, 3) RGB.

    Args:
        frames: in order of time; a PNG shows them from left to right.
        extension: ".gif", ".mp4" or ".png".
        fps: frames per second of GIF and MP4; the default is the rate of nano and Cosmos-Predict2. A GIF rounds the
            times of its frames to hundredths of a second, and has at most 50 frames per second.
        scale: enlarges each pixel to scale x scale; None chooses a scale at which small frames are easy to see.
        hold: how many seconds longer the first frame is shown, so that the start is easy to find (GIF and MP4); 0 for a
            file that is read as a video.
        labels: one text per frame, which is written below it.

    Raises:
        ValueError: if the extension, the shape or type of the frames, a value or the number of labels is not valid.
    """
    write = WRITERS[extension]
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise ValueError(
            f"A rollout must be uint8 (F, H, W, 3), and this is {frames.dtype} {frames.shape}: "
            "theworld.media.images.to_pixels converts frames of the world model."
        )
    check_fps(fps)
    if not (math.isfinite(hold) and hold >= 0):
        raise ValueError(f"hold is {hold} seconds, and must be 0 or more.")
    if scale is not None and scale < 1:
        raise ValueError(f"scale is {scale}, and must be 1 or more.")
    if labels is not None and len(labels) != len(frames):
        raise ValueError(f"Got {len(labels)} labels for {len(frames)} frames: pass one per frame.")
    if scale is None:
        scale = _visible_scale(frames, is_strip=extension == ".png")
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    if labels is not None:
        frames = np.stack([_with_label(frame, label) for frame, label in zip(frames, labels, strict=True)])
    return write(frames, fps, hold)


def futures_grid(futures: np.ndarray, extension: str) -> np.ndarray:
    """Several rollouts as one: uint8 (K, F, H, W, 3) -> (F, H', W', 3), with white lines between them.

    Args:
        futures: of the same image, in the order of their seeds.
        extension: ".gif" and ".mp4" show them in a grid, row by row; ".png" one below the other, so that each is a row
            of the strip.
    """
    count, num_frames, height, width, _ = futures.shape
    columns = 1 if extension == ".png" else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    line = max(1, min(height, width) // 32)
    cells = np.full((rows * columns, num_frames, height + line, width + line, 3), 255, dtype=np.uint8)
    cells[:count, :, :height, :width] = futures
    grid = cells.reshape(rows, columns, *cells.shape[1:]).transpose(2, 0, 3, 1, 4, 5)  # (F, rows, H, columns, W, 3)
    return grid.reshape(num_frames, rows * (height + line), columns * (width + line), 3)[:, :-line, :-line]


def grid_scale(futures: np.ndarray) -> int:
    """How much a grid of rollouts (K, F, H, W, 3) is enlarged: each is easy to see, and the grid is not too large."""
    _, _, height, width, _ = futures.shape
    columns = math.ceil(math.sqrt(len(futures)))
    return max(1, min(VISIBLE_SIDE // min(height, width), GRID_WIDTH // (columns * width)))


def moment_labels(num_past_frames: int, num_frames: int, fps: float) -> list[str]:
    """The labels of a rollout's frames: which were seen and which are imagined, and how many seconds from now."""
    before = [f"seen {number / fps:.2f} s" for number in range(-num_past_frames, 0)]
    after = [f"imagined +{number / fps:.2f} s" for number in range(1, num_frames - num_past_frames)]
    return [*before, "now", *after]


def check_fps(fps: float) -> None:
    """Raises a ValueError for a frame rate that cannot be written."""
    if not 0 < fps <= MAX_FPS:  # written so that NaN fails
        raise ValueError(f"fps is {fps}, and must be above 0 and at most {MAX_FPS}.")


def rollout_extension(path: str | os.PathLike[str]) -> str:
    """The extension of `path`: ".gif", ".mp4" or ".png".

    Raises:
        ValueError: if it is any other; commands check it before they imagine.
    """
    extension = Path(path).suffix.lower()
    if extension not in WRITERS:
        raise ValueError(
            f"{os.fspath(path)!r} ends in {extension or 'no extension'}: a rollout is written as {', '.join(WRITERS)}."
        )
    return extension


def _visible_scale(frames: np.ndarray, is_strip: bool) -> int:
    num_frames, height, width, _ = frames.shape
    scale = VISIBLE_SIDE // min(height, width)
    if is_strip:
        scale = min(scale, STRIP_WIDTH // (num_frames * width))
    return max(1, scale)


def _with_label(frame: np.ndarray, label: str) -> np.ndarray:
    height, width, _ = frame.shape
    text_size = max(11, min(20, width // 14))
    labelled = Image.new("RGB", (width, height + text_size + 8), "white")
    labelled.paste(Image.fromarray(frame), (0, 0))
    ImageDraw.Draw(labelled).text((4, height + 3), label, fill="black", font=ImageFont.load_default(text_size))
    return np.asarray(labelled)


def _gif(frames: np.ndarray, fps: float, hold: float) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    # ms: each frame ends at the hundredth of a second nearest to its time; viewers slow down frames of less than 20 ms
    ends = np.rint(np.arange(len(images) + 1) * max(2, 100 / fps)) * 10
    file = io.BytesIO()
    durations = np.diff(ends).astype(int)
    durations[0] += round(1000 * hold)
    images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=durations.tolist(), loop=0)
    return file.getvalue()


def _mp4(frames: np.ndarray, fps: float, hold: float) -> bytes:
    # H.264's 4:2:0 colour needs even sides; the encoder crashes otherwise.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    frames = np.concatenate([frames[:1].repeat(round(hold * fps), axis=0), frames])
    encoded: bytes = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
    return encoded


def _strip(frames: np.ndarray, fps: float, hold: float) -> bytes:
    spaced = np.pad(frames, ((0, 0), (0, 0), (0, STRIP_GAP), (0, 0)), constant_values=255)
    strip = np.concatenate(spaced, axis=1)[:, :-STRIP_GAP]
    file = io.BytesIO()
    Image.fromarray(strip).save(file, format="PNG")
    return file.getvalue()


# extension -> (frames, fps, hold) -> the bytes of the file
WRITERS: dict[str, Callable[[np.ndarray, float, float], bytes]] = {".gif": _gif, ".mp4": _mp4, ".png": _strip}
