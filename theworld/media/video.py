"""Videos: where their frames come from, which of them are wanted, and the one reader that decodes them.

Files are decoded as a stream, of which only the wanted frames are kept: memory depends on how many those are, and not
on the length of the video. MP4, MOV, WebM, Matroska and AVI go through PyAV; GIF, APNG, WebP and AVIF through Pillow.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile

from theworld.media.animations import first_frame, holds_more, num_animated, times_of
from theworld.media.containers import find_damage
from theworld.media.files import (
    ANIMATIONS,
    VIDEO_FORMATS,
    NotAnImage,
    check_not_empty,
    check_path,
    check_size,
    damaged,
    decoding,
    open_image,
    read_file,
    video_format,
)
from theworld.media.frames import to_images
from theworld.media.images import (
    decode_image,
    describe_array,
    images_from_array,
    is_array,
    load_image,
    load_images,
)
from theworld.media.selection import (
    KEPT_FRAMES,
    MAX_FRAMES,
    TIMED,
    FramesAfterNow,
    FrameSelection,
    FramesUntilNow,
    LastFrames,
    StridedFrames,
    Timeline,
    check_length,
    check_rate,
    count_at,
)
from theworld.media.selection import SpacedFrames as SpacedFrames
from theworld.media.streams import decode, read_times

if TYPE_CHECKING:
    from theworld.media.images import ImageSource

    VideoSource: TypeAlias = ImageSource | Sequence[ImageSource]

# Endings of the frames in a folder that is read as a video.
FRAME_FILES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".avif", ".jp2", ".heic", ".heif"),
)

logger = logging.getLogger(__name__)

LAST_FRAMES = LastFrames()

ACCEPTED_VIDEO = (
    "the path or the bytes of a video or an animation, a folder or a list of images, a NumPy array (F, H, W, C), or a "
    "torch tensor (F, C, H, W)"
)


@dataclass(frozen=True)
class Decoded:
    """The frames of a loaded video.

    Attributes:
        frames: the selected ones, in order of time.
        num_frames: as in `Video`.
        times: of each frame, in seconds since the first frame of the video; None if they are not known.
        moment: when now is, in the same seconds, of `LastFrames`.
    """

    frames: tuple[Image.Image, ...]
    num_frames: int
    times: np.ndarray | None = None
    moment: float | None = None


@dataclass(frozen=True)
class Video:
    """A video, which is decoded when it is loaded; where it is shown to a model, its last frame is now.

    Attributes:
        source: as in `load_video`.
        selection: which of its frames are wanted.
        until: of a folder, the name (without its ending) of the last frame that belongs to the video; None for all.
        after: of a folder, the name of the last frame before those that belong to it.
        fps: frames per second; None reads the time of each frame from the file. Lists, arrays and folders have none.
        at: now, as the number of a frame or as a time ("1.5 s"); None means the last frame.

    Raises:
        ValueError: if `fps` is no positive number.
    """

    source: Any
    selection: FrameSelection = LAST_FRAMES
    until: str | None = None
    after: str | None = None
    fps: float | None = None
    at: int | str | None = None
    _decoded: Decoded | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_rate(self.fps)

    @property
    def rate(self) -> float | None:
        """Frames per second that are read, if they are selected by time."""
        return self.selection.rate if isinstance(self.selection, TIMED) else None

    @property
    def needs_times(self) -> bool:
        """Whether the times of its frames must be read from the file."""
        is_timed = self.rate is not None or isinstance(self.at, str) or isinstance(self.selection, LastFrames)
        return self.fps is None and is_timed

    def load(self) -> Video:
        """This video with its frames in memory; the original keeps none, so that a dataset can hold many videos.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no video, is cut or damaged, has more than `MAX_FRAMES` frames or too large ones, or
                does not have the frames that are wanted.
        """
        return self if self._decoded is not None else replace(self, _decoded=_read(self))

    def load_past(self, rate: float, count: int) -> Video:
        """This video as a world model of `rate` frames per second reads it: now, and at most count - 1 frames before.

        Where frames were selected by number or at another rate, they are not resampled. Of a loaded video, the frames
        that were kept are. Without a known rate, `rate` is assumed, which is logged once.
        """
        selection = self.selection
        if isinstance(selection, FramesUntilNow) and selection.rate is None and selection.stride is None:
            return replace(self, selection=replace(selection, rate=rate)).load()
        if not isinstance(selection, LastFrames) or selection.rate is not None:
            return self.load()
        wanted = LastFrames(count, rate)
        if self._decoded is None:
            return replace(self, selection=wanted).load()
        return replace(self, selection=wanted, _decoded=_resampled(self._decoded, wanted))

    def load_future(self, rate: float, count: int) -> Video:
        """The first `count` frames of what follows now, as a world model of `rate` frames per second reads them."""
        selection = self.selection
        if not isinstance(selection, FramesAfterNow):
            return self.load()
        wanted = replace(selection, count=min(count, selection.count))
        if wanted.rate is None and wanted.stride is None:
            wanted = replace(wanted, rate=rate)
        return replace(self, selection=wanted, _decoded=None).load()

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """The selected frames in order of time, RGB; decoded again at each use unless the video is loaded."""
        return self._loaded().frames

    @property
    def num_frames(self) -> int:
        """How many frames the video has up to now, at the rate that is read; of other selections than `LastFrames`, how
        many are selected."""
        return self._loaded().num_frames

    @property
    def times(self) -> tuple[float, ...] | None:
        """When each selected frame is, in seconds since the first frame of the video; None if that is not known."""
        times = self._loaded().times
        return None if times is None else tuple(times.tolist())

    @property
    def now(self) -> Image.Image:
        """The last frame, which the language model sees as its image."""
        return self.frames[-1]

    def _loaded(self) -> Decoded:
        return _read(self) if self._decoded is None else self._decoded


def load_video(source: Video | VideoSource, keep: int = KEPT_FRAMES, fps: float | None = None) -> Video:
    """Decodes the last `keep` frames of a video, in order of time, each as `load_image` reads images.

    `source` is the path or the bytes of a video (MP4, MOV, WebM, Matroska, AVI) or an animation (GIF, APNG, animated
    WebP or AVIF); a folder of images of one size, in natural order of their names; a list of such images, each as in
    `load_image`; a NumPy array (F, H, W, C) or a torch tensor (F, C, H, W). An image is a video of one frame. Videos
    are turned and mirrored as their metadata says.

    The world model reads videos at its own rate, of the frames that were kept. The time of each frame comes from the
    file, or from `fps`, its frames per second. If the timestamps of a file are missing or not in order, its average
    rate is used, with a warning. Lists, arrays, folders and animations without times have no rate: without `fps`, that
    of the world model is assumed, with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a video, holds several images that are no animation, is cut or damaged, or has
            more than `MAX_FRAMES` frames, or frames of more than `MAX_PIXELS` pixels; or if `fps` is not positive.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, and at least 1 frame of a video must be kept.")
    if not isinstance(source, Video):
        return Video(source, LastFrames(keep), fps=fps).load()
    if fps is not None:
        raise ValueError("fps was given with a Video, which has its own: create it as Video(source, fps=…).")
    return source.load()


def frame_paths(folder: Path, until: str | None = None, after: str | None = None) -> list[Path]:
    """The frames in a folder, in natural order of their names (2 before 10).

    Args:
        until: the name, without its ending, of the last frame to take.
        after: the name of the last frame to leave out.

    Raises:
        ValueError: if there is no frame, or none of that name.
    """
    found = sorted((path for path in folder.iterdir() if path.suffix.lower() in FRAME_FILES), key=_natural_order)
    names = [path.stem for path in found]
    for name in (until, after):
        if name is not None and name not in names:
            raise ValueError(f"{str(folder)!r} has no frame {name!r} among its {len(names)} frames: check the name.")
    last = None if until is None else names.index(until) + 1
    chosen = found[0 if after is None else names.index(after) + 1 : last]
    if not chosen:
        raise ValueError(f"{str(folder)!r} holds no frames: put images in it, named in order of time.")
    return chosen


def _natural_order(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], path.name


# --- sources ---


def _read(video: Video) -> Decoded:
    """The selected frames."""
    source = video.source
    if isinstance(source, bytes | bytearray):
        name = f"The video given as {len(source):,} bytes"
        return _read_file(io.BytesIO(source), name, len(source), video)
    if isinstance(source, str | os.PathLike):
        check_path(os.fspath(source), "video")
        path = Path(os.path.expanduser(source))
        if not os.fspath(source).startswith(("http://", "https://")) and _is_dir(path):
            paths = frame_paths(path, video.until, video.after)
            name = repr(os.fspath(source))
            choice = _choose(video, len(paths), None, name)
            return choice.decoded(_of_one_size([load_image(paths[index]) for index in choice.needed], name))
        return read_file(source, lambda file, name, size: _read_file(file, name, size, video), "video")
    if is_array(source):
        if source.ndim != 4 or not len(source):
            return Decoded((load_image(source),), 1)
        choice = _choose(video, len(source), None, f"The {describe_array(source)}")
        return choice.decoded(images_from_array(source[choice.needed]))
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError(f"The video has no frames: pass {ACCEPTED_VIDEO}.")
        choice = _choose(video, len(source), None, f"The list of {len(source):,} frames")
        images = load_images([source[index] for index in choice.needed])
        return choice.decoded(_of_one_size(images, "The list of frames"))
    if isinstance(source, Image.Image):
        raise ValueError(f"A PIL image is an image and not a video: pass it as the image, or pass {ACCEPTED_VIDEO}.")
    raise ValueError(f"Expected a video, got {type(source).__name__}: pass {ACCEPTED_VIDEO}.")


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte: reading it reports it
        return False


@dataclass(frozen=True)
class _Choice:
    """The frames that are read of a video, in order of time; one that is shown for long may be read several times."""

    selection: FrameSelection
    indices: list[int]
    timeline: Timeline

    @property
    def needed(self) -> list[int]:
        """The indices without repetitions."""
        return sorted(set(self.indices))

    def decoded(self, images: Sequence[Image.Image]) -> Decoded:
        """The result, from one image for each of the `needed` indices."""
        of_index = dict(zip(self.needed, images, strict=True))
        frames = tuple(of_index[index] for index in self.indices)
        selection, timeline, num_frames = self.selection, self.timeline, len(frames)
        if isinstance(selection, LastFrames):
            rate = selection.rate
            num_frames = timeline.now() + 1 if rate is None else timeline.at_rate(rate).count_until_now(rate)
        if timeline.times is None:
            return Decoded(frames, num_frames)
        moment = timeline.moment() if isinstance(selection, LastFrames) else None
        return Decoded(frames, num_frames, timeline.times[self.indices], moment)


def _choose(video: Video, num_frames: int, times: np.ndarray | None, name: str, held: float = 0.0) -> _Choice:
    """Which frames are read of a video with these times, if they are known and not overridden by `fps`.

    Raises:
        ValueError: if there are too many frames, or not those that are wanted, or if a rate is needed and not known.
    """
    check_length(num_frames, name)
    if video.fps is not None:
        times, held = np.arange(num_frames) / video.fps, 0.0
    if times is None and isinstance(video.at, str):
        raise ValueError(
            f"{name} has no frame rate, which is needed to find the moment {video.at!r}: give its frames per second, "
            "as fps."
        )
    timeline = Timeline(name, num_frames, times, video.at, held)
    selection, rate = video.selection, video.rate
    indices = list(selection.indices(timeline if rate is None else timeline.at_rate(rate)))
    is_future = isinstance(selection, FramesAfterNow)
    if not indices and not is_future:
        raise _no_frame(selection, num_frames, name)
    if times is None and rate is not None and (is_future or len(indices) > 1):
        _warn_assumed(rate)
    return _Choice(selection, indices, timeline)


def _resampled(decoded: Decoded, wanted: LastFrames) -> Decoded:
    """Of frames that were kept of a video, those that are nearest to the moments of `wanted`."""
    assert wanted.rate is not None
    times, kept = decoded.times, len(decoded.frames)
    if times is None:
        times = np.arange(decoded.num_frames - kept, decoded.num_frames) / wanted.rate
    moment = float(times[-1]) if decoded.moment is None else decoded.moment
    indices = wanted.indices(Timeline("The video", kept, times - times[0], held=moment - float(times[-1])))
    if decoded.times is None and len(indices) > 1:
        _warn_assumed(wanted.rate)
    return Decoded(
        tuple(decoded.frames[index] for index in indices),
        max(count_at(moment, wanted.rate), min(decoded.num_frames, 2)),
        None if decoded.times is None else times[list(indices)],
        decoded.moment,
    )


@cache
def _warn_assumed(rate: float) -> None:
    logger.warning(
        "The frame rate of a video is not known, so %g frames per second are assumed, as the world model reads them: "
        "give it as fps, of a Video or of a record, or as video-fps on the command line.",
        rate,
    )


@cache
def _warn_average(name: str, rate: float) -> None:
    logger.warning(
        "%s does not say when each of its frames is shown, so its average rate of %.4g frames per second is used: give "
        "fps for another.",
        name,
        rate,
    )


def _no_frame(selection: FrameSelection, num_frames: int, name: str) -> ValueError:
    first = selection.first if isinstance(selection, StridedFrames) else 0
    return ValueError(f"{name} has {num_frames} frames, so there is no frame {first}: choose an earlier one.")


def _of_one_size(frames: Sequence[Image.Image], name: str) -> tuple[Image.Image, ...]:
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise ValueError(f"{name} has frames of {shown} pixels: the frames of a video must have one size.")
    return tuple(frames)


def _read_file(file: BinaryIO, name: str, num_bytes: int, video: Video) -> Decoded:
    """The frames of an open video, animation or image; `name` begins the error messages."""
    check_not_empty(num_bytes, name)
    try:
        image = open_image(file, name)
    except NotAnImage as error:
        demuxer = video_format(file)
        if demuxer is None:
            known = ", ".join([*VIDEO_FORMATS.values(), *ANIMATIONS])
            raise ValueError(f"{name} is not a video that can be read: pass one of {known}.") from error
        if reason := find_damage(file, demuxer, num_bytes):
            raise damaged(name, reason) from error
        return _read_stream(file, name, demuxer, video)
    with image:
        return _read_animation(image, file, name, num_bytes, video)


# --- animations ---


def _read_animation(image: ImageFile.ImageFile, file: BinaryIO, name: str, num_bytes: int, video: Video) -> Decoded:
    check_size(*image.size, name)
    position = file.tell()
    if holds_more(image, file, name):
        raise ValueError(
            f"{name} holds {image.format} images that are no animation (pages, or raw MJPEG): "
            "save them as an MP4, or each as a file of one folder."
        )
    container = {"GIF": "gif", "WEBP": "avi", "AVIF": "mp4"}.get(image.format or "")
    if container is not None and (reason := find_damage(file, container, num_bytes)):
        raise damaged(name, reason)
    file.seek(position)
    with decoding(name):
        num_frames = num_animated(image)
    times, held = times_of(image, num_frames, name) if video.needs_times else (None, 0.0)
    choice = _choose(video, num_frames, times, name, held)
    frames = []
    for index in choice.needed:
        with decoding(name):
            image.seek(index + first_frame(image))
        frames.append(decode_image(image, name))
    return choice.decoded(frames)


# --- videos ---


def _read_stream(file: BinaryIO, name: str, demuxer: str, video: Video) -> Decoded:
    """The selected frames of a video file."""

    def choose(stamps: np.ndarray, average: float | None) -> _Choice:
        if not len(stamps):
            raise ValueError(
                f"{name} holds no images: it is sound only, or was not written completely, so get it again."
            )
        return _choose(video, len(stamps), _stream_times(stamps, average, video, name), name)

    stops_early = video.at is not None or isinstance(video.selection, StridedFrames)
    average = None
    if stops_early and not video.needs_times:  # the indices do not depend on the length
        choice = _choose(video, MAX_FRAMES, None, name)
        kept, stamps = decode(file, name, demuxer, choice.needed, to_end=False)
        is_right = len(kept) == len(choice.needed)
        if video.fps is None:
            times = _stream_times(stamps, None, video, name)
            choice = replace(choice, timeline=replace(choice.timeline, times=times))
    else:
        expected, average = read_times(file, name, demuxer)
        choice = choose(expected, average)
        kept, stamps = decode(file, name, demuxer, choice.needed, to_end=not stops_early)
        is_right = len(stamps) == len(expected)
        if stops_early and not (is_right := np.array_equal(stamps, expected[: len(stamps)])):
            _, stamps = decode(file, name, demuxer, [])
    if not is_right:  # packets without a frame of their own are rare, and found only by decoding
        before, choice = choice.needed, choose(stamps, average)
        if before[: len(choice.needed)] != choice.needed:
            kept, _ = decode(file, name, demuxer, choice.needed)
        kept = kept[: len(choice.needed)]
    return choice.decoded(_of_one_size(to_images(kept, name), name) if kept else ())


def _stream_times(stamps: np.ndarray, average: float | None, video: Video, name: str) -> np.ndarray | None:
    """The times of frames with these timestamps; if some are missing or equal, those of the average rate."""
    if np.isfinite(stamps).all() and (np.diff(stamps) > 0).all():
        return stamps - stamps[0]
    if average is None or not video.needs_times:
        return None
    _warn_average(name, average)
    return np.arange(len(stamps)) / average
