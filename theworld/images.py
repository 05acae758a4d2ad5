"""Pictures in any form -> RGB: the only gate for decoding, size limits and EXIF rotation.

Whatever a person hands over (PIL, path, bytes, NumPy, torch, lists of them) becomes a PIL image in mode RGB here, and a
picture that cannot be read becomes one sentence that says what was wrong, where, and what to do. The world model's
frames are made from those images by `to_frames`, and frames become pixels again in `to_pixels`.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | bytearray | np.ndarray | torch.Tensor

# 8192 x 8192: 200 MB once decoded, read from the header before anything is.
MAX_PIXELS = 2**26

# By name, because Pillow also opens formats that start other programs (EPS runs Ghostscript).
FILE_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

ACCEPTED = (
    "a PIL image, a path, the bytes of an image file, a NumPy array (H, W, C), a torch tensor (C, H, W) or "
    "(B, C, H, W), or a list of these"
)

# What Pillow's decoders raise on damaged files; UnidentifiedImageError is an OSError.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_image(source: ImageSource) -> Image.Image:
    """One picture as a PIL image in mode RGB, upright, with transparency laid over white.

    `source` is a PIL image of any mode; the path or the bytes of a PNG, JPEG, GIF, WebP, BMP, TIFF, PPM, AVIF or
    JPEG 2000 file (of an animation, the first frame); a NumPy array (H, W) or (H, W, C); or a torch tensor (H, W),
    (C, H, W) or (1, C, H, W). Arrays and tensors have 1, 3 or 4 channels and are uint8 in 0..255 or float in [0, 1].
    PIL mode "I;16" is read as 0..65535; "I" as 0..255 where it fits and else as 0..65535; "F" as [0, 1] where it
    fits and else as 0..255. The image that was passed in is never changed.

    Raises FileNotFoundError for a missing file, and ValueError for everything else that is not such a picture, or that
    has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "The PIL image")
    if isinstance(source, bytes | bytearray):
        return _open(io.BytesIO(source), f"The image given as {len(source):,} bytes", len(source))
    if isinstance(source, str | os.PathLike):
        return _load_path(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        pictures = _from_array(source)
        if len(pictures) != 1:
            raise ValueError(f"One picture was expected and this {_describe(source)} holds {len(pictures)}: pass one.")
        return pictures[0]
    raise ValueError(f"A {type(source).__name__} is not a picture: pass {ACCEPTED}.")


def load_images(sources: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """Every picture in `sources`, as `load_image` reads it: one source, a list of them, or a batch.

    A batch is a torch tensor (B, C, H, W) or a NumPy array (B, H, W, C) and gives B pictures. Raises as `load_image`
    does, with the number of the picture at fault where there are several.
    """
    if isinstance(sources, list | tuple):
        return [_numbered(source, number, len(sources)) for number, source in enumerate(sources, start=1)]
    if isinstance(sources, np.ndarray | torch.Tensor):
        return _from_array(sources)
    return [load_image(sources)]  # type: ignore[arg-type]  # what is no source is refused there


def to_frames(images: ImageSource | Sequence[ImageSource | Sequence[ImageSource]], size: int) -> torch.Tensor:
    """Pictures or clips as the world model takes them: float32 (n, 3, F, size, size) in [-1, 1].

    `images` are as in `load_images`, and each is a clip of one frame (F = 1). Inside a list, a list of pictures or a
    batch is one clip of F frames; all clips have as many frames. Each picture is squeezed to a square with Pillow's
    Lanczos filter (antialiased, computed on 8-bit integers: the same on every machine, and what diffusers' pipelines
    do), and left alone where it has the size already.

    Raises as `load_image` does, and ValueError for no picture at all, clips of different lengths, or `size` < 1.
    """
    if size < 1:
        raise ValueError(f"A frame of {size} x {size} pixels was asked for: size must be at least 1.")
    if isinstance(images, list | tuple):
        total = len(images)
        clips = [
            load_images(item) if _is_clip(item) else [_numbered(item, number, total)]
            for number, item in enumerate(images, start=1)
        ]
    else:
        clips = [[image] for image in load_images(images)]  # type: ignore[arg-type]
    lengths = sorted({len(clip) for clip in clips})
    if not clips or lengths[0] == 0:
        raise ValueError(f"No picture was given: pass {ACCEPTED}.")
    if len(lengths) > 1:
        raise ValueError(f"The clips have {lengths} frames: clips of one batch must have the same number of frames.")
    pixels = np.stack([np.stack([np.asarray(_resize(frame, size)) for frame in clip]) for clip in clips])
    frames = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)  # (n, F, H, W, 3) -> (n, 3, F, H, W)
    # in the order diffusers has it, so that the two agree bit for bit
    return (frames.to(torch.float32) / 255.0 * 2.0 - 1.0).contiguous()


def to_pixels(frames: torch.Tensor) -> np.ndarray:
    """Frames (..., 3, F, H, W) in [-1, 1] as pixels: uint8 (..., F, H, W, 3), rounded; what lies outside is clipped.

    The inverse of `to_frames`, and what `pictures.save_rollout` takes.
    """
    pixels = ((frames.detach().to("cpu", torch.float32) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-4, -1).contiguous().numpy()


def _numbered(source: ImageSource, number: int, total: int) -> Image.Image:
    """`load_image`, with an error that says which of several pictures it was."""
    try:
        return load_image(source)
    except (ValueError, FileNotFoundError) as error:
        if total == 1:
            raise
        raise type(error)(f"Picture {number} of {total}: {error}") from error


def _is_clip(item: ImageSource | Sequence[ImageSource]) -> bool:
    return isinstance(item, list | tuple) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 4)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


# --- files ---


def _load_path(source: str | os.PathLike[str]) -> Image.Image:
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{name!r} is an address, and pictures are read from files: download it and pass its path.")
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir():
            raise ValueError(f"{name!r} is a directory: pass the path of an image file inside it.")
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name!r} (seen from {os.getcwd()!r}): check the path.")
        if not path.is_file():
            raise ValueError(f"{name!r} is not an ordinary file: save the picture as a file and pass its path.")
        with path.open("rb") as file:
            return _open(file, repr(name), path.stat().st_size)
    except FileNotFoundError:
        raise
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        raise ValueError(
            f"{name!r} cannot be read ({error.strerror or error}): check the path and its permissions."
        ) from error


def _open(file: io.IOBase, name: str, num_bytes: int) -> Image.Image:
    """The first picture of an open image file; `name` begins the sentence if it cannot be read."""
    if num_bytes == 0:
        raise ValueError(f"{name} is empty (0 bytes): the file was probably not written to the end, so get it again.")
    Image.init()  # loads the plugins, so that formats this Pillow was built without are left out
    formats = [name for name in FILE_FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow's warning would stand before our own error, whose limit is lower
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)  # type: ignore[arg-type]  # reads the header only
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller first.") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"{name} is not an image that can be read: pass one of {', '.join(formats)}.") from error
    with image:
        return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except _Unusable:
        raise
    except _DECODING_ERRORS as error:
        raise ValueError(f"{name} is damaged or cut short ({error}): get the file again or save it anew.") from error


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels): pass a picture with at least one pixel.")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} has {width} x {height} pixels, over the limit of {MAX_PIXELS:,}: make it smaller first."
        )


# --- modes ---


class _Unusable(ValueError):
    """A sound picture whose values have no one meaning; kept apart from what decoders raise."""


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257.0)  # 65535 / 257 = 255
    if image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        return _grey(values if _within(values, 255, name, last=65535) else values / 257.0)
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        return _grey(values * 255.0 if _within(values, 1, name, last=255) else values)
    if image.mode == "La":  # Pillow converts premultiplied grey to LA and to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _within(values: np.ndarray, top: int, name: str, last: int) -> bool:
    """Whether all values lie in [0, top]; an error where they do not lie in [0, last] either."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= last):  # written so that NaN fails
        raise _Unusable(
            f"{name} has values from {low:g} to {high:g}, which no brightness scale covers: "
            f"scale them to 0..{top} or 0..{last} first."
        )
    return high <= top


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


# --- arrays ---


def _from_array(array: np.ndarray | torch.Tensor) -> list[Image.Image]:
    """The pictures of an array or a tensor: one, or as many as its leading batch dimension says."""
    name = f"The {_describe(array)}"
    is_tensor = isinstance(array, torch.Tensor)
    order, other = ("(C, H, W)", "(H, W, C)") if is_tensor else ("(H, W, C)", "(C, H, W)")
    values = _to_numpy(array) if isinstance(array, torch.Tensor) else array
    if values.ndim not in (2, 3, 4):
        raise ValueError(f"{name} is not a picture: its shape must be (H, W) or {order}, or a batch of these.")
    if values.size == 0:
        raise ValueError(f"{name} is empty: pass a picture with at least one pixel.")
    if values.ndim == 2:
        values = values[..., None]  # (H, W) -> (H, W, 1)
    elif is_tensor:
        values = np.moveaxis(values, -3, -1)  # (..., C, H, W) -> (..., H, W, C)
    height, width, channels = values.shape[-3:]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"{name} was read as {order} and has {channels} channels: 1, 3 or 4 are understood; "
            f"if its order is {other}, permute it first."
        )
    _check_size(width, height, name)
    pixels = _to_uint8(values, name).reshape(-1, height, width, channels)
    return [_to_rgb(Image.fromarray(picture[..., 0] if channels == 1 else picture), name) for picture in pixels]


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().to("cpu")
    # NumPy has no bfloat16
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy()


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind not in "uifb":
        raise ValueError(f"{name} holds no brightness: pass uint8 in 0..255 or float in [0, 1].")
    low, high = float(values.min()), float(values.max())
    # A hair over 1 is what resizing in floating point leaves behind. Written so that NaN fails.
    if values.dtype.kind != "f" or not (low >= -1e-4 and high <= 1 + 1e-4):
        hint = " (for values in [-1, 1], pass (x + 1) / 2)" if -1 <= low < 0 and high <= 1 else ""
        raise ValueError(f"{name} has values from {low:g} to {high:g}: pass uint8 in 0..255 or float in [0, 1]{hint}.")
    return np.rint(values.astype(np.float32) * 255.0).clip(0, 255).astype(np.uint8)


def _describe(array: np.ndarray | torch.Tensor) -> str:
    kind = "torch tensor" if isinstance(array, torch.Tensor) else "NumPy array"
    return f"{kind} {tuple(array.shape)} of {str(array.dtype).removeprefix('torch.')}"
