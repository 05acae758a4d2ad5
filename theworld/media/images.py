"""Images in any form -> RGB: one gate for decoding, size limits and rotation.

Every form of image (PIL, path, bytes, NumPy, torch, lists of them) becomes a PIL image in mode RGB, and what cannot be
read becomes an error of one sentence that names the file, the problem and the remedy. `to_frames` converts such images
to frames of the world model, and `to_pixels` converts frames back to pixels. Videos are in `theworld.media.video`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from theworld.media.files import (
    NotAnImage,
    check_not_empty,
    check_size,
    decoding,
    image_formats,
    open_image,
    read_file,
    video_format,
)

if TYPE_CHECKING:  # a missing file is reported before torch is imported, which takes seconds
    import torch

    ImageSource: TypeAlias = (
        Image.Image | str | os.PathLike[str] | bytes | bytearray | np.ndarray | torch.Tensor | Mapping[str, Any]
    )

ACCEPTED = (
    "a PIL image, a path, the bytes of an image file, a NumPy array (H, W, C), a torch tensor (C, H, W) or "
    "(B, C, H, W), or a list of these"
)


def load_image(source: ImageSource) -> Image.Image:
    """Reads one image as a PIL image in mode RGB, upright, with transparency laid over white.

    `source` is a PIL image of any mode; the path or the bytes of a PNG, JPEG, GIF, WebP, BMP, TIFF, PPM, AVIF or
    JPEG 2000 file, or of a HEIC file if the package pillow-heif is installed (of several images in a file, the first is
    read); a NumPy array (H, W) or (H, W, C); or a torch tensor (H, W), (C, H, W) or (1, C, H, W). Arrays and tensors
    have 1, 3 or 4 channels and are uint8 in 0..255 or float in [0, 1]. PIL mode "I;16" is read as 0..65535; "I" as
    0..255 if all values fit and else as 0..65535; "F" as [0, 1] if all values fit and else as 0..255. The source is
    never changed. A dict with `bytes` or `path`, as `datasets` gives an image that it has not decoded, is either.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is anything else that is not such an image, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Mapping) and source.keys() == {"bytes", "path"}:
        source = source["path"] if source["bytes"] is None else source["bytes"]
    if isinstance(source, Image.Image):
        return decode_image(source, "The PIL image")
    if isinstance(source, bytes | bytearray):
        return _read_image(io.BytesIO(source), f"The image given as {len(source):,} bytes", len(source))
    if isinstance(source, str | os.PathLike):
        return read_file(source, _read_image, "image")
    if is_array(source):
        images = images_from_array(source)
        if len(images) != 1:
            raise ValueError(f"Expected one image, and this {describe_array(source)} holds {len(images)}: pass one.")
        return images[0]
    raise ValueError(f"Expected an image, got {type(source).__name__}: pass {ACCEPTED}.")


def load_images(sources: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """Reads every image in `sources` as `load_image` does: one source, a list of them, or a batch.

    A batch is a torch tensor (B, C, H, W) or a NumPy array (B, H, W, C) and gives B images. Errors are those of
    `load_image`; if there are several images, they name the number of the image.
    """
    if isinstance(sources, list | tuple):
        return [load_numbered(source, number, len(sources)) for number, source in enumerate(sources, start=1)]
    if is_array(sources):
        return images_from_array(sources)
    return [load_image(sources)]  # type: ignore[arg-type]  # which refuses anything else


def load_numbered(source: ImageSource, number: int, total: int) -> Image.Image:
    """`load_image` for one image of `total`, whose errors name its number."""
    try:
        return load_image(source)
    except (ValueError, FileNotFoundError) as error:
        if total == 1:
            raise
        raise type(error)(f"Image {number} of {total}: {error}") from error


def to_frames(images: ImageSource | Sequence[ImageSource | Sequence[ImageSource]], size: int) -> torch.Tensor:
    """Images or clips as the world model takes them: float32 (n, 3, F, size, size) in [-1, 1].

    `images` are as in `load_images`, and each is a clip of one frame (F = 1). Inside a list, a list of images or a
    batch is one clip of F frames; all clips must have the same number of frames.

    Raises:
        FileNotFoundError, ValueError: as `load_image`; ValueError also if there is no image, if the clips have
            different lengths, or if `size` is below 1.
    """
    if isinstance(images, list | tuple):
        total = len(images)
        clips = [
            load_images(item) if _is_clip(item) else [load_numbered(item, number, total)]
            for number, item in enumerate(images, start=1)
        ]
    else:
        clips = [[image] for image in load_images(images)]  # type: ignore[arg-type]
    return frames_of(stack_pixels(clips, size))


def stack_pixels(clips: Sequence[Sequence[Image.Image]], size: int) -> np.ndarray:
    """Clips of RGB images that `load_image` or `load_video` returned, as uint8 (n, F, size, size, 3).

    Each image is resized to a square with Pillow's Lanczos filter (antialiased, computed on 8-bit integers: the same on
    every machine, and what diffusers' pipelines do), unless it has that size already.
    """
    if size < 1:
        raise ValueError(f"The frame size is {size}, and must be at least 1 pixel.")
    lengths = sorted({len(clip) for clip in clips})
    if not clips or lengths[0] == 0:
        raise ValueError(f"No image was given: pass {ACCEPTED}.")
    if len(lengths) > 1:
        raise ValueError(f"The clips have {lengths} frames: clips of one batch must have the same number of frames.")
    return np.stack([np.stack([np.asarray(_resize(frame, size)) for frame in clip]) for clip in clips])


def frames_of(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Pixels uint8 (..., F, H, W, 3) as frames of the world model: float32 (..., 3, F, H, W) in [-1, 1].

    The frames are equal bit for bit to those of diffusers, on every device: values are looked up, since a GPU rounds
    the division by 255 differently.
    """
    import torch

    pixels = torch.as_tensor(pixels).movedim(-1, -4)
    if pixels.device.type == "cpu":
        return (pixels.to(torch.float32) / 255.0 * 2.0 - 1.0).contiguous()
    levels = torch.arange(256, dtype=torch.float32) / 255.0 * 2.0 - 1.0
    return levels.to(pixels.device)[pixels.to(torch.int32)]


def to_pixels(frames: torch.Tensor) -> np.ndarray:
    """Frames (..., 3, F, H, W) in [-1, 1] as pixels: uint8 (..., F, H, W, 3), rounded and clipped to the range.

    The inverse of `to_frames`, and what `theworld.media.export.save_rollout` takes.
    """
    import torch

    pixels = ((frames.detach().to("cpu", torch.float32) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-4, -1).contiguous().numpy()


def _is_clip(item: ImageSource | Sequence[ImageSource]) -> bool:
    return isinstance(item, list | tuple) or (is_array(item) and item.ndim == 4)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def _read_image(file: BinaryIO, name: str, num_bytes: int) -> Image.Image:
    """The first image of an open file; `name` begins the error messages."""
    check_not_empty(num_bytes, name)
    try:
        image = open_image(file, name)
    except NotAnImage as error:
        if video_format(file) is not None:
            raise ValueError(
                f"{name} is a video and was passed as an image: pass it as the video, not as an image."
            ) from error
        formats = ", ".join(image_formats())
        raise ValueError(f"{name} is not an image that can be read: pass one of {formats}.") from error
    with image:
        return decode_image(image, name)


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """A PIL image as RGB, upright, with transparency laid over white; `name` begins the error messages."""
    check_size(*image.size, name)
    with decoding(name):
        image.load()
        upright = ImageOps.exif_transpose(image)
    return to_rgb(upright, name)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A decoded PIL image of any mode as RGB, with transparency laid over white."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257.0)  # 65535 / 257 = 255
    if image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        return _grey(values if _fits(values, 255, name, last=65535) else values / 257.0)
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        return _grey(values * 255.0 if _fits(values, 1, name, last=255) else values)
    with decoding(name):
        if image.mode == "La":  # Pillow converts premultiplied grey to LA and to nothing else
            image = image.convert("LA")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image.convert("RGB")


def _fits(values: np.ndarray, top: int, name: str, last: int) -> bool:
    """Whether all values are in [0, top]; an error if they are not all in [0, last] either."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= last):  # written so that NaN fails
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}, which no brightness scale covers: "
            f"scale them to 0..{top} or 0..{last} first."
        )
    return high <= top


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def images_from_array(array: np.ndarray | torch.Tensor) -> list[Image.Image]:
    """The images of an array or a tensor: one, or one per entry of its leading batch dimension."""
    name = f"The {describe_array(array)}"
    order, other = ("(C, H, W)", "(H, W, C)") if is_tensor(array) else ("(H, W, C)", "(C, H, W)")
    values = _to_numpy(array) if is_tensor(array) else np.asarray(array)
    if values.ndim not in (2, 3, 4):
        raise ValueError(f"{name} is not an image: its shape must be (H, W) or {order}, or a batch of these.")
    if values.size == 0:
        raise ValueError(f"{name} is empty: pass an image with at least one pixel.")
    if values.ndim == 2:
        values = values[..., None]  # (H, W) -> (H, W, 1)
    elif is_tensor(array):
        values = np.moveaxis(values, -3, -1)  # (..., C, H, W) -> (..., H, W, C)
    height, width, channels = values.shape[-3:]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"{name} was read as {order} and has {channels} channels, which must be 1, 3 or 4: "
            f"if its order is {other}, permute it first."
        )
    check_size(width, height, name)
    pixels = _to_uint8(values, name).reshape(-1, height, width, channels)
    return [to_rgb(Image.fromarray(image[..., 0] if channels == 1 else image), name) for image in pixels]


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> TypeGuard[np.ndarray | torch.Tensor]:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().to("cpu")
    # NumPy has no bfloat16
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind not in "uifb":
        raise ValueError(f"{name} holds no brightness: pass uint8 in 0..255 or float in [0, 1].")
    low, high = float(values.min()), float(values.max())
    # Resizing in floating point leaves values a little above 1. Written so that NaN fails.
    if values.dtype.kind != "f" or not (low >= -1e-4 and high <= 1 + 1e-4):
        hint = " (for values in [-1, 1], pass (x + 1) / 2)" if -1 <= low < 0 and high <= 1 else ""
        raise ValueError(f"{name} has values from {low:g} to {high:g}: pass uint8 in 0..255 or float in [0, 1]{hint}.")
    return np.rint(values.astype(np.float32) * 255.0).clip(0, 255).astype(np.uint8)


def describe_array(array: np.ndarray | torch.Tensor) -> str:
    kind = "torch tensor" if is_tensor(array) else "NumPy array"
    return f"{kind} {tuple(array.shape)} of {str(array.dtype).removeprefix('torch.')}"
