"""One motion, filmed at different rates: a square rests, moves to the right for a second, and rests again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.media.encoding import animation, encode_video

HEIGHT, WIDTH, SIDE = 32, 64, 8
START, STOP = 0.25, 1.25  # seconds
SPEED = 32  # pixels per second: 2 per frame of the world model
SECONDS = 1.5
RATE = 16  # of the world model

# Frames per second, and a camera that leaves frames out: their times in sixtieths of a second.
VARIABLE = [number for number in range(91) if number % 7 not in (2, 3, 5)]
TIMES = {f"{fps} fps": [n / fps for n in range(int(SECONDS * fps) + 1)] for fps in (15, 16, 30, 32, 48, 60)}
TIMES["variable"] = [number / 60 for number in VARIABLE]


def position(time: float) -> int:
    """Where the left side of the square is."""
    return int(4 + SPEED * max(0.0, min(time, STOP) - START) + 1e-6)


def film(times: Sequence[float]) -> list[np.ndarray]:
    frames = np.zeros((len(times), HEIGHT, WIDTH, 3), np.uint8)
    for frame, time in zip(frames, times, strict=True):
        frame[12:20, position(time) : position(time) + SIDE] = 255
    return list(frames)


def positions(frames: Any) -> list[int]:
    """Where the square is in each frame."""
    return [int(np.argmax(np.asarray(frame)[12:20].mean(axis=(0, 2)) > 128)) for frame in frames]


def lossless(name: str) -> bytes:
    """A MOV of the frames at TIMES[name], each as it was drawn."""
    per_second = 60 if name == "variable" else int(name.split()[0])
    times = VARIABLE if name == "variable" else None
    return encode_video(film(TIMES[name]), "mov", "png", "rgb24", times=times, per_second=per_second)


def delays(fps: int, num_frames: int) -> list[int]:
    """Milliseconds of the frames of a GIF, which are multiples of ten."""
    ends = [10 * round(100 * number / fps) for number in range(num_frames + 1)]
    return [after - before for before, after in itertools.pairwise(ends)]


def animated(fps: int, file_format: str) -> bytes:
    frames = film(TIMES[f"{fps} fps"])
    return animation(frames, file_format, duration=delays(fps, len(frames)))


def write_frames(folder: Path, frames: Sequence[np.ndarray]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder
