"""Random access to the frames of video files: frames are addressed by their time, and a decoder stays open per file."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from theworld.media.containers import find_damage
from theworld.media.files import VIDEO_FORMATS, check_not_empty, check_size, damaged, decoding, read_file, video_format
from theworld.media.frames import to_images

if TYPE_CHECKING:
    import av

OPEN_FILES = 16  # each takes a few MB
SAME_TIME = 1e-6  # seconds between two ways to compute one time


class OpenVideos:
    """Video files that stay open between reads: the most recently used ones, and at most `limit` of them.

    Every process opens its own decoders, so that an instance can be used before and after a fork, and be pickled.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, _OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[OpenVideos], tuple[int]]:
        return OpenVideos, (self.limit,)

    def frames_at(self, path: Path, times: Sequence[float], tolerance: float) -> list[Image.Image]:
        """The frames whose times are nearest to `times`, in the same order, RGB and upright.

        Args:
            times: seconds on the clock of the file.
            tolerance: the largest accepted difference, in seconds.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a video, is cut or damaged, or has no frame that is near enough to a time.
        """
        if self._process != os.getpid():  # a fork shares the position in each file with its parent
            self._open.clear()
            self._process = os.getpid()
        video = self._open.pop(path, None) or _OpenVideo(path)
        frames = video.frames_at(times, tolerance)  # a file in which reading failed is not kept
        self._open[path] = video
        if len(self._open) > self.limit:
            self._open.popitem(last=False)[1].container.close()
        return frames


class _OpenVideo:
    """The first video stream of a file, positioned anywhere."""

    def __init__(self, path: Path) -> None:
        import av  # importing av takes 0.1 s, and only reading a video needs it

        self.name = repr(str(path))
        demuxer = read_file(path, find_demuxer, "video")
        with decoding(self.name):
            self.container = av.open(os.path.abspath(path), "r", format=demuxer)
        if not self.container.streams.video:
            raise ValueError(f"{self.name} holds no images: it is sound only, or was not written completely.")
        self.stream = self.container.streams.video[0]
        # a decoder without threads survives a fork; a DataLoader has one worker per core
        self.stream.codec_context.thread_count = 1

    def frames_at(self, times: Sequence[float], tolerance: float) -> list[Image.Image]:
        wanted = sorted(set(times))
        nearest: dict[float, av.VideoFrame] = {}
        frames = self._from(wanted[0])
        before: av.VideoFrame | None = None
        frame = next(frames, None)
        for time in wanted:
            while frame is not None and seconds(frame) < time - SAME_TIME:
                before, frame = frame, next(frames, None)
            near = [candidate for candidate in (before, frame) if candidate is not None]
            found = min(near, key=lambda candidate: abs(seconds(candidate) - time), default=None)
            if found is None or abs(seconds(found) - time) > tolerance:
                has = "no frame after it" if found is None else f"the nearest is at {seconds(found):.4f} s"
                raise ValueError(
                    f"{self.name} has no frame at {time:.4f} s ({has}): the file does not belong to this dataset, or "
                    "its frames are not where the dataset says, so get the file again."
                )
            nearest[time] = found
        images = dict(zip(nearest, to_images(list(nearest.values()), self.name), strict=True))
        return [images[time] for time in times]

    def _from(self, time: float) -> Iterator[av.VideoFrame]:
        """The frames from the last key frame up to `time` on."""
        margin = 0.0
        while True:
            frames = self._decoded(max(0.0, time - margin))
            first = next(frames, None)
            # where frames are shown in another order than they are stored, a seek may end at a later key frame
            if margin >= time or (first is not None and seconds(first) <= time + SAME_TIME):
                break
            margin = max(1.0, 2 * margin)
        if first is not None:
            yield first
            yield from frames

    def _decoded(self, start: float) -> Iterator[av.VideoFrame]:
        with decoding(self.name):
            self.container.seek(round(start / float(self.stream.time_base or 1)), stream=self.stream)
            frames = self.container.decode(self.stream)
        while True:
            with decoding(self.name):
                frame = next(frames, None)
            if frame is None:
                return
            if frame.pts is None:
                continue
            check_size(frame.width, frame.height, self.name)
            if frame.is_corrupt:
                raise damaged(self.name, f"in the frame at {seconds(frame):.4f} s")
            yield frame


def seconds(frame: av.VideoFrame) -> float:
    """The time of a frame on the clock of its file."""
    return float(frame.time)


def find_demuxer(file: BinaryIO, name: str, num_bytes: int) -> str:
    """FFmpeg's demuxer for a video file.

    Raises:
        ValueError: if the file is empty, is not a video, or its end is missing.
    """
    check_not_empty(num_bytes, name)
    demuxer = video_format(file)
    if demuxer is None:
        raise ValueError(f"{name} is not a video that can be read: pass one of {', '.join(VIDEO_FORMATS.values())}.")
    if reason := find_damage(file, demuxer, num_bytes):
        raise damaged(name, reason)
    return demuxer
