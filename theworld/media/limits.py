"""Limits of what a server decodes, checked in headers and packets before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from theworld.media.extent import Extent, extent_of
from theworld.media.images import load_image
from theworld.media.video import Video


@dataclass(frozen=True)
class MediaLimits:
    """What a server decodes.

    Attributes:
        max_frames: frames of a video.
        max_pixels: pixels of an image; a video may have 64 times as many in all its frames.
    """

    max_frames: int = 1024
    max_pixels: int = 2**24

    @property
    def max_video_pixels(self) -> int:
        return 64 * self.max_pixels

    def image(self, content: bytes) -> Image.Image:
        """Decodes an image; a ValueError if it cannot be read or is too large."""
        self._checked(content)
        return load_image(content)

    def video(self, content: bytes, read: Callable[[Video], Video], fps: float | None = None) -> Video:
        """Decodes a video with `read`, such as `TheWorldConfig.read_video`; a ValueError as `image`."""
        self._check_video(self._checked(content, count=True))
        return read(Video(content, fps=fps))

    def image_or_video(self, content: bytes, read: Callable[[Video], Video]) -> Image.Image | Video:
        """Decodes a file that has either; what has more than one frame is a video."""
        extent = self._checked(content, count=True)
        if extent.num_frames == 1:
            return load_image(content) if extent.is_image else read(Video(content))
        self._check_video(extent)
        return read(Video(content))

    def check_frames(self, contents: Sequence[bytes]) -> None:
        """Raises a ValueError if the images in `contents` are too large for the frames of one video."""
        pixels = 0
        for content in contents:
            pixels += self._checked(content).pixels
            self._check_video_pixels(pixels)

    def _checked(self, content: bytes, count: bool = False) -> Extent:
        extent = extent_of(content, count=count)
        if extent.pixels > self.max_pixels:
            raise ValueError(
                f"it has {extent.width} x {extent.height} pixels, and this server takes {self.max_pixels:,}; make it "
                "smaller."
            )
        return extent

    def _check_video(self, extent: Extent) -> None:
        if extent.num_frames > self.max_frames:
            raise ValueError(
                f"the video has {extent.num_frames:,} frames, and this server takes {self.max_frames:,}; cut it to the "
                "moments that matter."
            )
        self._check_video_pixels(extent.pixels * extent.num_frames)

    def _check_video_pixels(self, pixels: int) -> None:
        if pixels > self.max_video_pixels:
            raise ValueError(
                f"all frames together have over {self.max_video_pixels:,} pixels, the limit of this server; make them "
                "smaller, or take fewer."
            )
