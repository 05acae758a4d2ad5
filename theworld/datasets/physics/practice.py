"""The plainest questions about a picture: which colour is where, and where a thing is, exactly.

They teach where to look and what colours are called, without which questions about things ("where is the red ball?")
stay at chance for long. *Cells* ask for the colour at a place. *Scans* have long answers, the colours along a row or
column and exact places: many facts about one picture for one question. Both are for training only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from theworld.datasets.physics.questions import things
from theworld.datasets.physics.rendering import BACKGROUND, PALETTE
from theworld.datasets.physics.scenes import Clip
from theworld.datasets.physics.simulation import IMAGE_SIZE

CELLS = 8  # along a side of the picture, as in the benchmark's positions "to an eighth"
SURE = 12  # of 255: how far a pixel may be from a colour to be called by its name
PLACES = 32  # steps along a side that "where is it?" is answered in
COLOUR_NAMES = ("empty", *PALETTE)


class Asked(NamedTuple):
    """What training keeps of a question; millions of them cross process borders."""

    text: str
    answer: str
    family: str
    topic: str


def cell_colours(picture: np.ndarray) -> np.ndarray:
    """Which of COLOUR_NAMES stands in the middle of each cell of a picture (H, W, 3) uint8: (8, 8), -1 where unsure."""
    side = picture.shape[0] // CELLS
    centre = side // 2
    colours = np.array([BACKGROUND, *PALETTE.values()])  # (colours, 3)
    distance = np.maximum(  # of two pixels on either side of the middle
        *(
            np.abs(picture[first::side, first::side].astype(np.int32)[:, :, None] - colours).max(-1)
            for first in (centre - 1, centre)
        )
    )  # (8, 8, colours)
    return np.where(distance.min(-1) <= SURE, distance.argmin(-1), -1)


def cell_questions(picture: np.ndarray, family: str, count: int, rng: np.random.Generator) -> list[Asked]:
    """What colour is where, in up to `count` cells of a picture (H, W, 3) uint8, mostly of things.

    The plainest questions there are: the words name a place, the answer stands there. They teach where to look and what
    colours are called, without which questions about things ("where is the red ball?") stay at chance for long.
    """
    colours = cell_colours(picture)
    full, empty = np.argwhere(colours > 0), np.argwhere(colours == 0)
    chosen = [*rng.permutation(full)[: count - count // 4], *rng.permutation(empty)[: count // 4]]
    return [
        Asked(
            f"What colour is at column {column + 1}, row {row + 1}?",
            COLOUR_NAMES[colours[row, column]],
            family,
            "cell",
        )
        for row, column in chosen
    ]


def scan_questions(clip: Clip, frame: int, count: int, rng: np.random.Generator) -> list[Asked]:
    """The colours along rows and columns, and where things are in steps of a 32nd of the picture; `count` at most."""
    colours = cell_colours(clip.frames[frame])
    asked = []
    for name, lines in (("row", colours), ("column", colours.T)):
        for number, line in enumerate(lines):
            words = " ".join("unsure" if colour < 0 else COLOUR_NAMES[colour] for colour in line)
            asked.append(Asked(f"Which colours are in {name} {number + 1}?", words, clip.family, f"{name}_colours"))
    for name, middle in things(clip, frame).items():
        x, y = (min(PLACES - 1, max(0, int(value * PLACES / IMAGE_SIZE))) for value in middle)
        # twice: what is where is asked as often as what the lines hold
        asked += [Asked(f"Where exactly is {name}?", f"{x} {y}", clip.family, "where")] * 2
    return [asked[i] for i in rng.permutation(len(asked))[:count]]
