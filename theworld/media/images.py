"""Pictures and videos in any form -> RGB: the only gate for decoding, size limits and rotation.

Whatever a person hands over (PIL, path, bytes, NumPy, torch, lists of them) becomes a PIL image in mode RGB here, or a
`Video` of them, and what cannot be read becomes one sentence that says what was wrong, where, and what to do. The world
model's frames are made from those images by `to_frames`, and frames become pixels again in `to_pixels`.
"""

import io
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | bytearray | np.ndarray | torch.Tensor
Content = TypeVar("Content")

# 8192 x 8192: 200 MB once decoded, read from the header before anything is.
MAX_PIXELS = 2**26

# By name, because Pillow also opens formats that start other programs (EPS runs Ghostscript).
FILE_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# Formats whose further pictures are later moments; those of a TIFF are pages, those of an MPO two eyes.
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
# What a file begins with (bytes from, to, value) -> the one demuxer that may read it: left to guess, FFmpeg would also
# open playlists, which name other files and addresses.
VIDEO_FORMATS = {
    "MP4 or MOV": ((4, 8, b"ftyp"), "mp4"),
    "WebM or Matroska": ((0, 4, b"\x1a\x45\xdf\xa3"), "matroska"),
    "AVI": ((8, 12, b"AVI "), "avi"),
}
# Two and a quarter minutes at 30 frames a second, of which a model reads the last ones: longer is a mistake, and slow.
MAX_FRAMES = 4096
# Frames that are kept of a video when nobody says how many: 16 past world steps and now.
KEPT_FRAMES = 65

ACCEPTED = (
    "a PIL image, a path, the bytes of an image file, a NumPy array (H, W, C), a torch tensor (C, H, W) or "
    "(B, C, H, W), or a list of these"
)

ACCEPTED_VIDEO = (
    "the path or the bytes of a video or an animation, a list of pictures, a NumPy array (F, H, W, C), or a torch "
    "tensor (F, C, H, W)"
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


@dataclass(frozen=True)
class Video:
    """What has been seen so far, in order of time: the last frame is now.

    Attributes:
        frames: RGB pictures of one size; of a long video the last ones.
        num_frames: how many there were in all.
    """

    frames: tuple[Image.Image, ...]
    num_frames: int

    @property
    def now(self) -> Image.Image:
        """The last frame, which the language model sees as its picture."""
        return self.frames[-1]


def load_video(source: Video | ImageSource | Sequence[ImageSource], keep: int = KEPT_FRAMES) -> Video:
    """What has been seen so far: the last `keep` frames of a video, in order of time, as `load_image` reads pictures.

    `source` is the path or the bytes of a video (MP4, MOV, WebM, Matroska, AVI) or an animation (GIF, APNG, animated
    WebP or AVIF); a list of pictures of one size, each as in `load_image`; a NumPy array (F, H, W, C) or a torch tensor
    (F, C, H, W). A picture is a video of one frame. Frames are taken as they come, whatever their rate.

    Raises FileNotFoundError for a missing file, and ValueError for everything else that is not such a video, has more
    than `MAX_FRAMES` frames, or frames of more than `MAX_PIXELS` pixels.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} frames of a video were asked for: keep at least 1.")
    if isinstance(source, Video):
        return source
    if isinstance(source, bytes | bytearray):
        return _open_video(io.BytesIO(source), f"The video given as {len(source):,} bytes", len(source), keep)
    if isinstance(source, str | os.PathLike):
        return _with_file(source, lambda file, name, num_bytes: _open_video(file, name, num_bytes, keep), "video")
    if isinstance(source, np.ndarray | torch.Tensor):
        if source.ndim != 4:
            return Video((load_image(source),), 1)
        _check_length(len(source), f"The {_describe(source)}")
        return Video(tuple(_from_array(source[-keep:])), len(source))
    if isinstance(source, list | tuple):
        _check_length(len(source), f"The list of {len(source):,} frames")
        return Video(_of_one_size(load_images(source[-keep:])), len(source))
    if isinstance(source, Image.Image):
        raise ValueError(f"A PIL image is one picture and no video: pass it as the picture, or {ACCEPTED_VIDEO}.")
    raise ValueError(f"A {type(source).__name__} is not a video: pass {ACCEPTED_VIDEO}.")


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
        return _with_file(source, _open, "picture")
    if isinstance(source, np.ndarray | torch.Tensor):
        pictures = _from_array(source)
        if len(pictures) != 1:
            raise ValueError(f"One picture was expected and this {_describe(source)} holds {len(pictures)}: pass one.")
        return pictures[0]
    raise ValueError(f"A {type(source).__name__} is not a picture: pass {ACCEPTED}.")


MOVING = ("GIF", "PNG", "WEBP")  # Pillow's names of formats that hold animations


def num_frames_of(path: str) -> int:
    """Frames of a picture's file, 1 unless it moves; 1 also where it cannot be read, which loading will say."""
    try:
        with Image.open(path) as picture:
            # a photograph may hold a second view (MPO), and a TIFF pages: they do not move
            return int(getattr(picture, "n_frames", 1)) if picture.format in MOVING else 1
    except (OSError, ValueError, Image.DecompressionBombError):
        return 1


def load_images(sources: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """Every picture in `sources`, as `load_image` reads it: one source, a list of them, or a batch.

    A batch is a torch tensor (B, C, H, W) or a NumPy array (B, H, W, C) and gives B pictures. Raises as `load_image`
    does, with the number of the picture at fault where there are several.
    """
    if isinstance(sources, list | tuple):
        return [load_numbered(source, number, len(sources)) for number, source in enumerate(sources, start=1)]
    if isinstance(sources, np.ndarray | torch.Tensor):
        return _from_array(sources)
    return [load_image(sources)]  # type: ignore[arg-type]  # what is no source is refused there


def load_numbered(source: ImageSource, number: int, total: int) -> Image.Image:
    """`load_image` of one picture among `total`, whose errors say which it was."""
    try:
        return load_image(source)
    except (ValueError, FileNotFoundError) as error:
        if total == 1:
            raise
        raise type(error)(f"Picture {number} of {total}: {error}") from error


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
            load_images(item) if _is_clip(item) else [load_numbered(item, number, total)]
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


def _is_clip(item: ImageSource | Sequence[ImageSource]) -> bool:
    return isinstance(item, list | tuple) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 4)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


# --- files ---


def _with_file(source: str | os.PathLike[str], read: Callable[[BinaryIO, str, int], Content], kind: str) -> Content:
    """`read(file, name, number of bytes)` of an ordinary file; `kind` is what it should hold, for the errors."""
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{name!r} is an address, and {kind}s are read from files: download it and pass its path.")
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir():
            raise ValueError(f"{name!r} is a directory: pass the path of a {kind} inside it.")
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name!r} (seen from {os.getcwd()!r}): check the path.")
        if not path.is_file():
            raise ValueError(f"{name!r} is not an ordinary file: save the {kind} as a file and pass its path.")
        with path.open("rb") as file:
            return read(file, repr(name), path.stat().st_size)
    except FileNotFoundError:
        raise
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        raise ValueError(
            f"{name!r} cannot be read ({error.strerror or error}): check the path and its permissions."
        ) from error


def _open(file: BinaryIO, name: str, num_bytes: int) -> Image.Image:
    """The first picture of an open image file; `name` begins the sentence if it cannot be read."""
    _check_not_empty(num_bytes, name)
    formats = _formats()
    try:
        image = _open_image(file, name, formats)
    except _NoImage as error:
        if _demuxer_of(file) is not None:
            raise ValueError(
                f"{name} is a video and was given as a picture: pass it as the video (`--video FILE`, or `video=`)."
            ) from error
        raise ValueError(f"{name} is not an image that can be read: pass one of {', '.join(formats)}.") from error
    with image:
        return _decode(image, name)


class _NoImage(ValueError):
    """A file that no picture format knows."""


class _Refusal(ValueError):
    """Our own sentence; kept apart from what decoders raise."""


def _check_not_empty(num_bytes: int, name: str) -> None:
    if num_bytes == 0:
        raise ValueError(f"{name} is empty (0 bytes): the file was probably not written to the end, so get it again.")


def _formats() -> list[str]:
    Image.init()  # loads the plugins, so that formats this Pillow was built without are left out
    return [name for name in FILE_FORMATS if name in Image.OPEN]


def _open_image(file: BinaryIO, name: str, formats: Sequence[str]) -> ImageFile.ImageFile:
    """An open image file, of which only the header was read."""
    try:
        with warnings.catch_warnings():
            # Pillow's warning would stand before our own error, whose limit is lower
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=list(formats))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller first.") from error
    except _DECODING_ERRORS as error:
        raise _NoImage from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except _Refusal:
        raise
    except _DECODING_ERRORS as error:
        raise _damaged(name, error) from error


def _damaged(name: str, said: object) -> _Refusal:
    return _Refusal(f"{name} is damaged or cut short ({said}): get the file again or save it anew.")


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise _Refusal(f"{name} is empty ({width} x {height} pixels): pass a picture with at least one pixel.")
    if width * height > MAX_PIXELS:
        raise _Refusal(
            f"{name} has {width} x {height} pixels, over the limit of {MAX_PIXELS:,}: make it smaller first."
        )


# --- videos ---


def _open_video(file: BinaryIO, name: str, num_bytes: int, keep: int) -> Video:
    """The last `keep` frames of an open video, animation or picture; `name` begins the sentence if there are none."""
    _check_not_empty(num_bytes, name)
    try:
        image = _open_image(file, name, _formats())
    except _NoImage as error:
        demuxer = _demuxer_of(file)
        if demuxer is None:
            known = ", ".join([*VIDEO_FORMATS, *ANIMATIONS])
            raise ValueError(f"{name} is not a video that can be read: pass one of {known}.") from error
        return _decode_video(file, name, demuxer, keep)
    with image:
        return _decode_animation(image, name, keep)


def _demuxer_of(file: BinaryIO) -> str | None:
    """What would read this file as a video, or None; the file is at its start again."""
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    known = [demuxer for (first, last, value), demuxer in VIDEO_FORMATS.values() if start[first:last] == value]
    return known[0] if known else None


def _decode_video(file: BinaryIO, name: str, demuxer: str, keep: int) -> Video:
    import av  # a tenth of a second, for those who read no video

    kept: deque[av.VideoFrame] = deque(maxlen=keep)  # as decoded, which takes half the memory of RGB
    count = 0
    try:
        with av.open(file, "r", format=demuxer) as container:
            streams = container.streams.video[:1]
            # packet by packet and without frame threads: else the damage at the end of a cut file is passed over
            for packet in container.demux(streams) if streams else ():
                for frame in packet.decode():
                    if count == 0:
                        _check_size(frame.width, frame.height, name)
                    count += 1
                    _check_length(count, name)
                    if frame.is_corrupt:
                        raise _damaged(name, f"in frame {count:,}")
                    kept.append(frame)
        if count == 0:
            raise _Refusal(f"{name} holds no pictures: it is sound alone, or was not written to the end; get it again.")
        pictures = [frame.to_image().rotate(frame.rotation, expand=True) for frame in kept]  # as the phone was held
    except _Refusal:
        raise
    except av.FFmpegError as error:
        raise _damaged(name, error.strerror) from error
    except _DECODING_ERRORS as error:
        raise _damaged(name, error) from error
    return Video(_of_one_size(pictures), count)


def _decode_animation(image: ImageFile.ImageFile, name: str, keep: int) -> Video:
    _check_size(*image.size, name)
    count = 1
    try:
        if image.format in ANIMATIONS:
            count = image.n_frames  # type: ignore[attr-defined]  # every one of these formats has it
            _check_length(count, name)
        frames = []
        for number in range(max(0, count - keep), count):
            image.seek(number)
            frames.append(_decode(image, name))
    except _Refusal:
        raise
    except _DECODING_ERRORS as error:
        raise _damaged(name, error) from error
    return Video(tuple(frames), count)


def _check_length(num_frames: int, name: str) -> None:
    if num_frames > MAX_FRAMES:
        raise _Refusal(f"{name} has more than {MAX_FRAMES:,} frames: cut it to the last moments before now.")


def _of_one_size(frames: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    sizes = sorted({frame.size for frame in frames})
    if not sizes:
        raise ValueError(f"The video has no frames: pass {ACCEPTED_VIDEO}.")
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise ValueError(f"The frames of a video have one size, and these have {shown} pixels: bring them to one.")
    return tuple(frames)


# --- modes ---


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
        raise _Refusal(
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
