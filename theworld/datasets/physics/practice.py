"""Simple practice questions about an image: which colour is where, and the exact position of an object.

They teach positions and the names of colours; without them, questions about objects ("where is the red ball?") stay at
chance for long. *Cells* ask for the colour at a position. *Scans* have long answers, the colours along a row or column
and exact positions: many facts about one image in one question. Both are for training only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from theworld.datasets.physics.questions import things
from theworld.datasets.physics.rendering import BACKGROUND, PALETTE
from theworld.datasets.physics.scenes import Clip
from theworld.datasets.physics.simulation import IMAGE_SIZE

CELLS = 8  # along each side of the image, as in the benchmark's positions
SURE = 12  # of 255: the largest distance of a pixel from a colour that gets its name
PLACES = 32  # steps along each side in answers about positions
COLOUR_NAMES = ("empty", *PALETTE)


class QAPair(NamedTuple):
    """What training keeps of a question; small, because millions of them are sent between processes."""

    text: str
    answer: str
    family: str
    topic: str


def cell_colours(image: np.ndarray) -> np.ndarray:
    """The index in COLOUR_NAMES of the middle of each cell of an image (H, W, 3) uint8: (8, 8), -1 if unsure."""
    side = image.shape[0] // CELLS
    centre = side // 2
    colours = np.array([BACKGROUND, *PALETTE.values()])  # (colours, 3)
    before, after = (
        np.abs(image[first::side, first::side].astype(np.int32)[:, :, None] - colours).max(-1)
        for first in (centre - 1, centre)
    )
    distance = np.maximum(before, after)  # (8, 8, colours), of the pixel on either side of a cell's middle
    return np.where(distance.min(-1) <= SURE, distance.argmin(-1), -1)


def cell_questions(image: np.ndarray, family: str, count: int, rng: np.random.Generator) -> list[QAPair]:
    """Questions about the colour of up to `count` cells of an image (H, W, 3) uint8, mostly of objects."""
    colours = cell_colours(image)
    full, empty = np.argwhere(colours > 0), np.argwhere(colours == 0)
    chosen = [*rng.permutation(full)[: count - count // 4], *rng.permutation(empty)[: count // 4]]
    text = "What colour is at column {}, row {}?"
    return [QAPair(text.format(x + 1, y + 1), COLOUR_NAMES[colours[y, x]], family, "cell") for y, x in chosen]


def scan_questions(clip: Clip, frame: int, count: int, rng: np.random.Generator) -> list[QAPair]:
    """At most `count` questions about the colours along rows and columns and the positions of objects (in 32nds)."""
    colours = cell_colours(clip.frames[frame])
    questions = []
    for name, lines in (("row", colours), ("column", colours.T)):
        for number, line in enumerate(lines):
            words = " ".join("unsure" if colour < 0 else COLOUR_NAMES[colour] for colour in line)
            text = f"Which colours are in {name} {number + 1}?"
            questions.append(QAPair(text, words, clip.family, f"{name}_colours"))
    for name, middle in things(clip, frame).items():
        x, y = (min(PLACES - 1, max(0, int(value * PLACES / IMAGE_SIZE))) for value in middle)
        # twice, so that positions are as frequent as rows and columns
        questions += [QAPair(f"Where exactly is {name}?", f"{x} {y}", clip.family, "where")] * 2
    return [questions[i] for i in rng.permutation(len(questions))[:count]]
