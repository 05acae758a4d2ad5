"""Videos: where their frames come from, which of them are wanted, and the one reader that decodes them.

Files are decoded as a stream, of which only the wanted frames are kept: memory depends on how many those are, and not
on the length of the video. MP4, MOV, WebM, Matroska and AVI go through PyAV; GIF, APNG, WebP and AVIF through Pillow.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile

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

if TYPE_CHECKING:
    import av

    from theworld.media.images import ImageSource

    VideoSource: TypeAlias = ImageSource | Sequence[ImageSource]

# More than an hour at 30 frames per second. Longer videos are decoded in minutes, for a few frames.
MAX_FRAMES = 2**17
# Frames that `load_video` keeps by default: 16 past world steps and now.
KEPT_FRAMES = 65
# Codecs of which each packet holds one frame, besides those that encode each frame alone.
ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp8", "vp9", "av1")
TRANSPARENT_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Endings of the frames in a folder that is read as a video.
FRAME_FILES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".avif", ".jp2", ".heic", ".heif"),
)

ACCEPTED_VIDEO = (
    "the path or the bytes of a video or an animation, a folder or a list of images, a NumPy array (F, H, W, C), or a "
    "torch tensor (F, C, H, W)"
)


@dataclass(frozen=True)
class LastFrames:
    """The last `count` frames."""

    count: int = KEPT_FRAMES

    def indices(self, num_frames: int) -> Sequence[int]:
        return range(max(0, num_frames - self.count), num_frames)


@dataclass(frozen=True)
class SpacedFrames:
    """`count` evenly spaced frames, the first and the last included; all frames of a shorter video."""

    count: int

    def indices(self, num_frames: int) -> Sequence[int]:
        if num_frames <= self.count:
            return range(num_frames)
        indices: list[int] = np.linspace(0, num_frames - 1, self.count).round().astype(int).tolist()
        return indices


@dataclass(frozen=True)
class StridedFrames:
    """At most `count` of the frames first, first + stride, first + 2 · stride, …; reading stops after the last."""

    first: int = 0
    stride: int = 1
    count: int = MAX_FRAMES

    def indices(self, num_frames: int) -> Sequence[int]:
        return range(self.first, num_frames, self.stride)[: self.count]


FrameSelection: TypeAlias = LastFrames | SpacedFrames | StridedFrames


@dataclass(frozen=True)
class Video:
    """A video, which is decoded when it is loaded; where it is shown to a model, its last frame is now.

    Attributes:
        source: as in `load_video`.
        selection: which of its frames are wanted.
        until: of a folder, the name (without its ending) of the last frame that belongs to the video; None for all.
        after: of a folder, the name of the last frame before those that belong to it.
    """

    source: Any
    selection: FrameSelection = LastFrames()
    until: str | None = None
    after: str | None = None
    _decoded: tuple[tuple[Image.Image, ...], int] | None = field(default=None, repr=False, compare=False)

    def load(self) -> Video:
        """This video with its frames in memory; the original keeps none, so that a dataset can hold many videos.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no video, is cut or damaged, has more than `MAX_FRAMES` frames or too large ones, or
                does not have the frames that are wanted.
        """
        return self if self._decoded is not None else replace(self, _decoded=_read(self))

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """The selected frames in order of time, RGB; decoded again at each use unless the video is loaded."""
        return self._loaded()[0]

    @property
    def num_frames(self) -> int:
        """How many frames the video has up to the last selected one; of `SpacedFrames` and `StridedFrames`, those."""
        frames, num_frames = self._loaded()
        return num_frames if isinstance(self.selection, LastFrames) else len(frames)

    @property
    def now(self) -> Image.Image:
        """The last frame, which the language model sees as its image."""
        return self.frames[-1]

    def _loaded(self) -> tuple[tuple[Image.Image, ...], int]:
        return _read(self) if self._decoded is None else self._decoded


def load_video(source: Video | VideoSource, keep: int = KEPT_FRAMES) -> Video:
    """Decodes the last `keep` frames of a video, in order of time, each as `load_image` reads images.

    `source` is the path or the bytes of a video (MP4, MOV, WebM, Matroska, AVI) or an animation (GIF, APNG, animated
    WebP or AVIF); a folder of images, in natural order of their names; a list of images of one size, each as in
    `load_image`; a NumPy array (F, H, W, C) or a torch tensor (F, C, H, W). An image is a video of one frame. Videos
    are turned and mirrored as their metadata says. Frames are counted, not seconds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a video, holds several images that are no animation, is cut or damaged, or has
            more than `MAX_FRAMES` frames, or frames of more than `MAX_PIXELS` pixels.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, and at least 1 frame of a video must be kept.")
    return source.load() if isinstance(source, Video) else Video(source, LastFrames(keep)).load()


def num_frames_of_image(path: str | os.PathLike[str]) -> int:
    """How many frames an image file has: 1 unless it is an animation, or if it cannot be read."""

    def count(file: BinaryIO, name: str, num_bytes: int) -> int:
        with open_image(file, name) as image, decoding(name):
            return _num_animated(image)

    try:
        return read_file(path, count, "image")
    except (ValueError, FileNotFoundError):  # loading the image reports it
        return 1


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


def _read(video: Video) -> tuple[tuple[Image.Image, ...], int]:
    """The selected frames, and how many the video has (unless the selection stops before the end)."""
    source, selection = video.source, video.selection
    if isinstance(source, bytes | bytearray):
        name = f"The video given as {len(source):,} bytes"
        return _read_file(io.BytesIO(source), name, len(source), selection)
    if isinstance(source, str | os.PathLike):
        check_path(os.fspath(source), "video")
        path = Path(os.path.expanduser(source))
        if not os.fspath(source).startswith(("http://", "https://")) and _is_dir(path):
            paths = frame_paths(path, video.until, video.after)
            indices = _choose(selection, len(paths), repr(os.fspath(source)))
            frames = [load_image(paths[index]) for index in indices]
            return _of_one_size(frames, repr(os.fspath(source))), len(paths)
        return read_file(source, lambda file, name, size: _read_file(file, name, size, selection), "video")
    if is_array(source):
        name = f"The {describe_array(source)}"
        if source.ndim != 4:
            return (load_image(source),), 1
        indices = _choose(selection, len(source), name) if len(source) else []
        return tuple(images_from_array(source[list(indices)])), len(source)
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError(f"The video has no frames: pass {ACCEPTED_VIDEO}.")
        indices = _choose(selection, len(source), f"The list of {len(source):,} frames")
        return _of_one_size(load_images([source[index] for index in indices]), "The list of frames"), len(source)
    if isinstance(source, Image.Image):
        raise ValueError(f"A PIL image is an image and not a video: pass it as the image, or pass {ACCEPTED_VIDEO}.")
    raise ValueError(f"Expected a video, got {type(source).__name__}: pass {ACCEPTED_VIDEO}.")


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte: reading it reports it
        return False


def _choose(selection: FrameSelection, num_frames: int, name: str) -> Sequence[int]:
    _check_length(num_frames, name)
    indices = selection.indices(num_frames)
    if not indices:
        raise _no_frame(selection, num_frames, name)
    return indices


def _no_frame(selection: FrameSelection, num_frames: int, name: str) -> ValueError:
    first = selection.first if isinstance(selection, StridedFrames) else 0
    return ValueError(f"{name} has {num_frames} frames, so there is no frame {first}: choose an earlier one.")


def _check_length(num_frames: int, name: str) -> None:
    if num_frames > MAX_FRAMES:
        raise ValueError(f"{name} has more than {MAX_FRAMES:,} frames: cut it to the moments that matter.")


def _of_one_size(frames: Sequence[Image.Image], name: str) -> tuple[Image.Image, ...]:
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise ValueError(f"{name} has frames of {shown} pixels: the frames of a video must have one size.")
    return tuple(frames)


def _read_file(
    file: BinaryIO, name: str, num_bytes: int, selection: FrameSelection
) -> tuple[tuple[Image.Image, ...], int]:
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
        return _read_stream(file, name, demuxer, selection)
    with image:
        return _read_animation(image, file, name, num_bytes, selection)


# --- animations ---


def _first_frame(image: ImageFile.ImageFile) -> int:
    """1 if the first image is not part of the animation: an APNG may show another one where animations are unknown."""
    return int(getattr(image, "default_image", False))


def _num_animated(image: ImageFile.ImageFile) -> int:
    # every format in ANIMATIONS has `n_frames`
    return int(image.n_frames) - _first_frame(image) if image.format in ANIMATIONS else 1  # type: ignore[attr-defined]


def _read_animation(
    image: ImageFile.ImageFile, file: BinaryIO, name: str, num_bytes: int, selection: FrameSelection
) -> tuple[tuple[Image.Image, ...], int]:
    check_size(*image.size, name)
    position = file.tell()
    if _holds_more(image, file, name):
        raise ValueError(
            f"{name} holds {image.format} images that are no animation (pages, or raw MJPEG): "
            "save them as an MP4, or each as a file of one folder."
        )
    container = {"GIF": "gif", "WEBP": "avi", "AVIF": "mp4"}.get(image.format or "")
    if container is not None and (reason := find_damage(file, container, num_bytes)):
        raise damaged(name, reason)
    file.seek(position)
    with decoding(name):
        num_frames = _num_animated(image)
    frames = []
    for index in _choose(selection, num_frames, name):
        with decoding(name):
            image.seek(index + _first_frame(image))
        frames.append(decode_image(image, name))
    return tuple(frames), num_frames


def _holds_more(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> bool:
    """Whether a TIFF has several pages, or a JPEG file a second image of the same size, as no photo has."""
    if image.format != "JPEG":
        return image.format == "TIFF" and getattr(image, "n_frames", 1) > 1
    with _open(file, name, "mjpeg") as container, decoding(name):
        second = [bytes(packet) for packet in itertools.islice(_packets(container, name), 2)][1:]
    try:
        return bool(second and second[0]) and open_image(io.BytesIO(second[0]), name).size == image.size
    except ValueError:  # some camera's notes
        return False


# --- videos ---


def _read_stream(
    file: BinaryIO, name: str, demuxer: str, selection: FrameSelection
) -> tuple[tuple[Image.Image, ...], int]:
    """The selected frames of a video file."""
    if isinstance(selection, StridedFrames):  # whose indices do not depend on the length: reading stops at the last one
        kept, num_frames = _decode(file, name, demuxer, selection.indices(MAX_FRAMES), to_end=False)
    else:
        expected = _count_packets(file, name, demuxer)
        kept, num_frames = _decode(file, name, demuxer, selection.indices(expected))
        if num_frames != expected:  # packets without a frame of their own are rare, and found only by decoding
            kept, num_frames = _decode(file, name, demuxer, selection.indices(num_frames))
    if num_frames == 0:
        raise ValueError(f"{name} holds no images: it is sound only, or was not written completely, so get it again.")
    if not kept:
        raise _no_frame(selection, num_frames, name)
    return _of_one_size(to_images(kept, name), name), num_frames


def _decode(
    file: BinaryIO, name: str, demuxer: str, indices: Sequence[int], to_end: bool = True
) -> tuple[list[av.VideoFrame], int]:
    """The frames of these indices, and how many frames were decoded; without `to_end` up to the last of them.

    Frames are kept as decoded, which takes half the memory of RGB.
    """
    kept: list[av.VideoFrame] = []
    count = num_promised = 0
    waiting: set[int] = set()  # the times of the promised frames that the decoder has not returned yet
    for promised, frames in _decoded_packets(file, name, demuxer):
        if promised is not None:
            num_promised += 1
            waiting.add(promised)
        for frame in frames:
            count += 1
            _check_length(count, name)
            check_size(frame.width, frame.height, name)
            if frame.is_corrupt:
                raise damaged(name, f"in frame {count:,}")
            if len(kept) < len(indices) and count - 1 == indices[len(kept)]:
                kept.append(frame)
            waiting.discard(frame.pts)
            num_promised -= frame.interlaced_frame  # whose second field may have a packet of its own
            if to_end or len(kept) < len(indices):
                continue
            # if an earlier frame is missing, only the whole video shows whether it is lost or its time is wrong
            if frame.pts is None or not any(time < frame.pts for time in waiting):
                return kept, count
    if num_promised > count:
        raise damaged(name, f"{num_promised - count:,} of its frames cannot be decoded")
    return kept, count


def _decoded_packets(file: BinaryIO, name: str, demuxer: str) -> Iterator[tuple[int | None, list[av.VideoFrame]]]:
    """Decodes a video packet by packet: the time of the frame that the packet promises, and the frames that came out.

    A decoder passes over some damage without an error, and no frame comes out. None is promised by codecs that may
    repeat a frame by an empty packet, nor before the first key frame, without which those that follow it cannot be
    decoded, nor if it is hidden.
    """
    start: int | None = None
    with _open(file, name, demuxer) as container:
        packets = _packets(container, name)
        packet: av.Packet | None = None
        decoder: Any = None
        while True:
            with decoding(name):
                packet = next(packets, None)
                if packet is not None and decoder is None:
                    decoder = _decoder(packet.stream)
                # packet by packet and without frame threads, which would pass over damage at the end of a cut file
                frames = [] if packet is None else decoder.decode(packet)
            if packet is None:
                return
            if start is None and packet.is_keyframe:
                start = packet.pts
            yield (packet.pts if _promises_frame(packet, start) else None), frames


def _decoder(stream: av.VideoStream) -> av.CodecContext:
    """The decoder of a stream; FFmpeg's own ones of VP8 and VP9 pass over transparency."""
    import av

    codec = TRANSPARENT_DECODERS.get(stream.codec_context.name)
    if codec is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    return av.CodecContext.create(codec, "r")


def _promises_frame(packet: av.Packet, start: int | None) -> bool:
    codec = packet.stream.codec_context.codec
    if not packet.size or packet.is_discard or not (codec.intra_only or codec.canonical_name in ONE_FRAME_PER_PACKET):
        return False
    is_hidden = codec.canonical_name == "vp8" and not memoryview(packet)[0] & 0x10  # for reference alone
    return packet.pts is not None and start is not None and packet.pts >= start and not is_hidden


def _count_packets(file: BinaryIO, name: str, demuxer: str) -> int:
    """How many frames the packets of a video promise, found without decoding them."""
    with _open(file, name, demuxer) as container:
        packets = _packets(container, name)
        with decoding(name):
            return sum(1 for packet in packets if packet.size and not packet.is_discard)


def _open(file: BinaryIO, name: str, demuxer: str) -> av.container.InputContainer:
    import av  # importing av takes 0.1 s, and only reading a video needs it

    file.seek(0)
    with decoding(name):
        return av.open(file, "r", format=demuxer)


def _packets(container: av.container.InputContainer, name: str) -> Iterator[av.Packet]:
    """The packets of the first video stream that is not the cover image of a sound file; none without such a stream."""
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        return iter(())
    if streams[0].codec_context is not None and streams[0].width:
        check_size(streams[0].width, streams[0].height, name)
    return container.demux(streams[0])
