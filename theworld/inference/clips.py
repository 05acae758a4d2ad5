"""What people are told about the frames of a video that a model reads."""

from __future__ import annotations

from theworld.media.video import Video
from theworld.model.configuration import TheWorldConfig


def describe_clip(clip: Video, config: TheWorldConfig, past: int) -> str:
    """The sentence that says which frames of a video are read, which is at the world model's rate."""
    read, rate = config.num_pixel_frames(0, past), config.world_config.fps
    if clip.num_frames == 1:
        return "Video: it has one frame, the present."
    if read == 1:
        return f"Video: only the last of its {clip.num_frames:,} frames is read."
    return (
        f"Video: the last {read} of its {clip.num_frames:,} frames are read; the last one is the present. Frames are "
        f"counted at {rate} per second, so that these are {(read - 1) / rate:g} s."
    )
