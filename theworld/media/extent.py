"""How large an image or a video is, read from headers and packets before anything is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

from theworld.media.animations import num_animated
from theworld.media.files import NotAnImage, check_not_empty, decoding, image_formats, open_image, video_format
from theworld.media.streams import open_stream, packets_of


@dataclass(frozen=True)
class Extent:
    """Width and height in pixels, and the number of frames, 1 for an image and where they were not counted."""

    width: int
    height: int
    num_frames: int
    is_image: bool = False  # or an animation in a format of images

    @property
    def pixels(self) -> int:
        """Pixels of one frame."""
        return self.width * self.height


def extent_of(content: bytes, *, count: bool = True) -> Extent:
    """The extent of a file's content; `count` counts its frames, which takes long for animations with many.

    Raises:
        ValueError: if it is neither an image nor a video, or is damaged.
    """
    file, name = io.BytesIO(content), f"The file of {len(content):,} bytes"
    check_not_empty(len(content), name)
    if (demuxer := video_format(file)) is not None:
        with open_stream(file, name, demuxer) as container, decoding(name):
            packets = packets_of(container, name)
            sizes = [(stream.width, stream.height) for stream in container.streams.video]
            width, height = max(sizes, default=(0, 0), key=lambda size: size[0] * size[1])
            return Extent(width, height, sum(1 for packet in packets if packet.size) if count else 1)
    try:
        with open_image(file, name) as image, decoding(name):
            return Extent(*image.size, num_animated(image) if count else 1, is_image=True)
    except NotAnImage as error:
        formats = ", ".join(image_formats())
        raise ValueError(f"{name} is neither an image nor a video that can be read: pass one of {formats}.") from error
