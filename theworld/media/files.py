"""Opening image and video files: which formats are read, the size limits, and errors in one sentence.

A format is recognised by its first bytes and read by the one decoder that belongs to it. Left to guess, Pillow would
start other programs (EPS runs Ghostscript) and FFmpeg would open playlists, which name other files and addresses.
"""

import errno
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image, ImageFile

from theworld.media.containers import find_damage
from theworld.messages import shortened

Content = TypeVar("Content")

# 8192 x 8192: 200 MB once decoded, read from the header before any pixel is.
MAX_PIXELS = 2**26

FILE_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# Formats whose further images are later moments; those of a TIFF are pages, those of an MPO file a stereo pair.
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")

# FFmpeg's demuxer -> what people call the format
VIDEO_FORMATS = {"mp4": "MP4 or MOV", "matroska": "WebM or Matroska", "avi": "AVI"}
# MP4's container also holds still images: HEIF and AVIF by their major brand, and Canon's raw photographs.
STILL_BRANDS: tuple[bytes, ...] = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
STILL_BRANDS += (b"mif1", b"mif2", b"msf1", b"miaf", b"avif", b"avis", b"crx ")
# What a QuickTime file without the later `ftyp` box begins with.
QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")

# What decoders raise for damaged files, besides av.FFmpegError; UnidentifiedImageError is covered by these.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class NotAnImage(ValueError):
    """Raised by `open_image` if no image format fits the file."""


def check_path(name: str, kind: str) -> None:
    """Raises a ValueError for an empty path, which would be read as the current folder."""
    if not name:
        raise ValueError(f"The path of the {kind} is empty: pass the path of a file.")


def read_file(source: str | os.PathLike[str], read: Callable[[BinaryIO, str, int], Content], kind: str) -> Content:
    """Returns `read(file, name, number of bytes)` of an ordinary file; `kind` is what it should hold, for errors."""
    path = Path(os.path.expanduser(os.fspath(source)))
    name = repr(shortened(os.fspath(source)))
    check_path(os.fspath(source), kind)
    if name[1:].startswith(("http://", "https://")):
        raise ValueError(f"{name} is an address, and {kind}s are read from files: download it and pass its path.")
    if name[1:].startswith("data:"):
        raise ValueError(f"{name} is an address with the content of a file: decode it, and pass the bytes.")
    try:
        if path.is_dir():
            raise ValueError(f"{name} is a directory: pass the path of a file inside it.")
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name} (seen from {os.getcwd()!r}): check the path.")
        if not path.is_file():
            raise ValueError(f"{name} is not an ordinary file: save the {kind} as a file and pass its path.")
        with path.open("rb") as file:
            return read(file, name, path.stat().st_size)
    except FileNotFoundError:
        raise
    except OSError as error:  # no permission, a name that is too long, a failing disk
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(
                f"{name} is too long for a path. If it is a file's content in base64, decode it and pass the bytes."
            ) from error
        raise ValueError(
            f"{name} cannot be read ({error.strerror or error}): check the path and its permissions."
        ) from error


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turns what a decoder raises into one sentence that begins with `name`."""
    try:
        yield
    except _decoding_errors() as error:
        raise damaged(name, getattr(error, "strerror", None) or error) from error


def _decoding_errors() -> tuple[type[Exception], ...]:
    av = sys.modules.get("av")  # which only videos import
    return DECODING_ERRORS if av is None else (*DECODING_ERRORS, av.FFmpegError)


def damaged(name: str, reason: object) -> ValueError:
    return ValueError(f"{name} is damaged or cut short ({reason}): download or save the file again.")


def check_size(width: int, height: int, name: str) -> None:
    """Raises a ValueError for images without pixels and for those over `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels): pass an image with at least one pixel.")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} has {width} x {height} pixels, over the limit of {MAX_PIXELS:,}: make it smaller first."
        )


def check_not_empty(num_bytes: int, name: str) -> None:
    if num_bytes == 0:
        raise ValueError(f"{name} is empty (0 bytes): it was probably not written completely, so get the file again.")


def image_formats() -> list[str]:
    """The names of the image formats that this Pillow can read, of those we accept."""
    Image.init()  # loads the plug-ins, so that formats this Pillow was built without are left out
    return [name for name in FILE_FORMATS if name in Image.OPEN]


def open_image(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Opens an image file, of which only the header is read; raises NotAnImage if no accepted format fits."""
    still, start = still_image_kind(file), _start(file)
    try:
        return _open_with_pillow(file, name, image_formats())
    except NotAnImage:
        container = "mp4" if still else "avi" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None
        if container is not None and (reason := find_damage(file, container, file.seek(0, os.SEEK_END))):
            raise damaged(name, reason) from None
        if still is None:
            raise
    if still in ("HEIC", "AVIF"):
        try:
            import pillow_heif
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
            return _open_with_pillow(file, name, ["HEIF"])
    package = ", or install the package pillow-heif" if still == "HEIC" else ""
    article = "an" if still == "AVIF" else "a"
    raise ValueError(
        f"{name} is {article} {still} image, which cannot be read here: convert it to JPEG or PNG{package}."
    )


def _open_with_pillow(file: BinaryIO, name: str, formats: Sequence[str]) -> ImageFile.ImageFile:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size and of damage, which our own errors name
            return Image.open(file, formats=list(formats))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller first.") from error
    except DECODING_ERRORS as error:
        raise NotAnImage from error


def video_format(file: BinaryIO) -> str | None:
    """FFmpeg's demuxer for a video file, or None if it is no video."""
    start = _start(file)
    if start[4:8] == b"ftyp":
        return None if start[8:12] in STILL_BRANDS else "mp4"
    if start[4:8] in QUICKTIME_BOXES:
        return "mp4"
    if start.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if start[:4] == b"RIFF" and start[8:12] == b"AVI " else None


def still_image_kind(file: BinaryIO) -> str | None:
    """What people call a still image in MP4's container (HEIC, AVIF, CR3), or None for any other file."""
    start = _start(file)
    if start[4:8] != b"ftyp" or start[8:12] not in STILL_BRANDS:
        return None
    if start[8:12] == b"crx ":
        return "CR3"
    return "AVIF" if b"avif" in start or b"avis" in start else "HEIC"  # also among the compatible brands


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    return start
