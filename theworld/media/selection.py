"""Which frames of a video are wanted: by their number, or by time.

A selection by time takes the frame that is nearest to each moment. A frame that is shown for longer than usual counts
as repeated until shortly before the next one, since writers of animations merge equal frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

# Frames that `load_video` keeps by default.
KEPT_FRAMES = 65
# More than an hour at 30 frames per second. Longer videos are decoded in minutes, for a few frames.
MAX_FRAMES = 2**17
# Frames per second that a video can have; the fastest cameras stay below.
MAX_RATE = 10**6
# A moment midway between two frames, up to this share of their distance later, belongs to the earlier one: timestamps
# are rounded, to milliseconds in Matroska and to hundredths of a second in GIF.
MIDWAY = 0.55


def seconds_of(text: str) -> float:
    """The seconds of a time such as "1.5 s" or "250 ms".

    Raises:
        ValueError: if it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(m?s)\s*", text)
    if found is None:
        raise ValueError(f"{text!r} is not a time: write seconds as '1.5 s'.")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def check_rate(fps: float | None) -> None:
    """Raises a ValueError for a frame rate that is no positive number."""
    if fps is None:
        return
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MAX_RATE:
        raise ValueError(
            f"fps is {fps!r}: give the frames per second of the video, a number above 0 and up to {MAX_RATE:,}."
        )


def usual(seconds: np.ndarray) -> float:
    """For how long a frame is usually shown: of frames that were not merged, though not of one that is too short."""
    return float(np.quantile(seconds, 0.1))


def check_length(num_frames: int, name: str) -> None:
    """Raises a ValueError for a video of more than `MAX_FRAMES` frames."""
    if num_frames > MAX_FRAMES:
        raise ValueError(f"{name} has more than {MAX_FRAMES:,} frames: cut it to the moments that matter.")


@dataclass(frozen=True)
class Timeline:
    """The frames of a video and the moment that is now.

    Attributes:
        name: begins error messages.
        num_frames: how many there are.
        times: (num_frames,) seconds since the first frame, in ascending order; None if they are not known.
        at: now, as the number of a frame or as a time such as "1.5 s"; None means the last frame.
        held: for how many seconds the last frame is shown longer than usual.
    """

    name: str
    num_frames: int
    times: np.ndarray | None = None
    at: int | str | None = None
    held: float = 0.0

    @property
    def seconds(self) -> np.ndarray:
        assert self.times is not None
        return self.times

    def now(self) -> int:
        """The number of the frame that is now.

        Raises:
            ValueError: if the video ends before it.
        """
        if self.at is None:
            return self.num_frames - 1
        if isinstance(self.at, str):
            if seconds_of(self.at) > self.end() + self.period():
                raise ValueError(
                    f"{self.name} ends after {self.end():.4g} s, so there is no frame at {self.at}: choose an "
                    "earlier moment."
                )
            return int(self.nearest(np.array([seconds_of(self.at)]), 0.0)[0])
        if not 0 <= self.at < self.num_frames:
            raise ValueError(
                f"{self.name} has {self.num_frames} frames, so there is no frame {self.at}: choose an earlier one."
            )
        return self.at

    def moment(self) -> float:
        """Now, in seconds since the first frame."""
        if isinstance(self.at, str):
            return seconds_of(self.at)
        return self.end() if self.at is None else float(self.seconds[self.now()])

    def end(self) -> float:
        """The last moment, in seconds since the first frame; where the last frame was merged, that of the last copy."""
        return float(self.seconds[-1]) + self.held

    def period(self) -> float:
        """The usual time from one frame to the next, in seconds; 0 for a single frame."""
        return usual(np.diff(self.seconds)) if self.num_frames > 1 else 0.0

    def nearest(self, moments: np.ndarray, longest: float) -> np.ndarray:
        """The number of the frame that is nearest to each of the moments, in seconds.

        Args:
            longest: frames that are shown for longer than this, and than usual, count as repeated.
        """
        gaps = np.diff(self.seconds)
        begins = self.seconds[1:] - np.minimum(gaps, max(longest, self.period())) * (1 - MIDWAY)
        return np.searchsorted(begins, moments, side="right")

    def at_rate(self, rate: float) -> Timeline:
        """This timeline; if its times are not known, with those of `rate` frames per second."""
        return self if self.times is not None else replace(self, times=np.arange(self.num_frames) / rate)

    def count_until_now(self, rate: float) -> int:
        """How many frames at `rate` per second there are up to now; at least 2 if the video has several."""
        return max(count_at(self.moment(), rate), min(self.now() + 1, 2))


@dataclass(frozen=True)
class LastFrames:
    """The last `count` frames up to now.

    Attributes:
        count: at most this many.
        rate: frames per second to read, nearest to the moments now, now - 1 / rate, now - 2 / rate, …; None means
            every frame.
    """

    count: int = KEPT_FRAMES
    rate: float | None = None

    def indices(self, timeline: Timeline) -> Sequence[int]:
        end = timeline.now() + 1
        if self.rate is None:
            return range(max(0, end - self.count), end)
        count = min(self.count, count_at(timeline.moment(), self.rate))
        return at_rate(timeline, np.arange(1 - count, 1), timeline.moment(), self.rate)


@dataclass(frozen=True)
class FramesUntilNow:
    """The frame that is now, and exactly `past` frames before it.

    Attributes:
        past: their number, or their time, such as "0.5 s".
        stride: every how many frames of the video one is taken.
        rate: frames per second to read, instead of `stride`. Without either every frame, until a world model with a
            rate of its own reads them.
    """

    past: int | str = 0
    stride: int | None = None
    rate: float | None = None

    def num_past(self) -> int:
        if isinstance(self.past, int):
            return self.past
        if self.rate is None:
            raise ValueError(f"past is {self.past!r}, and frames are counted here: give a number of frames.")
        return round(seconds_of(self.past) * self.rate)

    def indices(self, timeline: Timeline) -> Sequence[int]:
        now, count, stride = timeline.now(), self.num_past(), self.stride or 1
        if self.rate is None:
            available = now // stride
        else:
            available = count_at(timeline.moment(), self.rate) - 1
        if count > available:
            raise ValueError(
                f"{timeline.name} has {available} of the {count} frames that are wanted before now: choose fewer past "
                "frames, or a later moment."
            )
        if self.rate is None:
            return range(now - count * stride, now + 1, stride)
        return at_rate(timeline, np.arange(-count, 1), timeline.moment(), self.rate)


@dataclass(frozen=True)
class FramesAfterNow:
    """At most `count` frames after now; if a video has no moment that is now, now is one frame before its first.

    Attributes:
        count: how many.
        stride, rate: as in `FramesUntilNow`.
    """

    count: int = MAX_FRAMES
    stride: int | None = None
    rate: float | None = None

    def indices(self, timeline: Timeline) -> Sequence[int]:
        now = -1 if timeline.at is None else timeline.now()
        if self.rate is None:
            stride = self.stride or 1
            return range(now + stride, timeline.num_frames, stride)[: self.count]
        if timeline.at is None:
            moment = -(timeline.period() or 1 / self.rate)
        else:
            moment = timeline.moment()
        last = min(self.count, count_at(timeline.end() - moment, self.rate) - 1)
        return at_rate(timeline, np.arange(1, last + 1), moment, self.rate)


@dataclass(frozen=True)
class SpacedFrames:
    """`count` evenly spaced frames up to now, the first and the last included; all frames of a shorter video."""

    count: int

    def indices(self, timeline: Timeline) -> Sequence[int]:
        num_frames = timeline.now() + 1
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

    def indices(self, timeline: Timeline) -> Sequence[int]:
        return range(self.first, timeline.num_frames, self.stride)[: self.count]


FrameSelection: TypeAlias = LastFrames | FramesUntilNow | FramesAfterNow | SpacedFrames | StridedFrames


# Selections that may be by time.
TIMED = (LastFrames, FramesUntilNow, FramesAfterNow)


def count_at(seconds: float, rate: float) -> int:
    """How many frames at `rate` per second there are from the first one up to `seconds` after it."""
    return int(seconds * rate + 1 - MIDWAY) + 1


def at_rate(timeline: Timeline, steps: np.ndarray, moment: float, rate: float) -> list[int]:
    """The numbers of the frames nearest to moment + step / rate; `steps` count from now."""
    indices: list[int] = timeline.nearest(moment + steps / rate, 1 / rate).tolist()
    return indices
