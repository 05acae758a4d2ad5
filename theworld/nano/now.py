"""Pictures to read and what is asked about them *now*: the training material of stage (c).

Three kinds of questions. *Benchmark* questions are those of `now_questions`, which the gate is measured on. *Cells* ask
for the colour at a place. *Scans* have long answers, the colours along a row or column and where exactly things are:
many facts about one picture for one question. The last two are asked in training only.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from theworld.datasets.physics import FAMILIES, IMAGE_SIZE, Clip, make_clip, next_questions, now_questions, things
from theworld.datasets.physics.pictures import BACKGROUND, PALETTE

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


@dataclass
class Pictures:
    """Clips with questions about some of their frames.

    `clips` uint8 (n, F, H, W, 3); `entries` name a clip and a frame; `questions` belong to the entries, by kind.
    """

    clips: np.ndarray
    entries: list[tuple[int, int]]
    questions: list[dict[str, list[Asked]]]


def each(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """`function` of every task, in order, by so many processes; by none but this one when `workers` is 0."""
    if workers == 0:
        yield from map(function, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(function, tasks, chunksize=8)


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


def draw(
    task: tuple[str, str, int], frames_per_clip: int, per_kind: int
) -> tuple[np.ndarray, list[tuple[int, dict[str, list[Asked]]]]]:
    """One clip and up to `per_kind` questions of each kind about some of its frames, the first among them."""
    clip = make_clip(*task)
    rng = np.random.default_rng(task[2])
    count = frames_per_clip - 1
    ends = rng.permutation(np.arange(4, len(clip.frames), 4))[: count // 2]  # moments that end a latent frame
    others = np.setdiff1d(np.arange(1, len(clip.frames)), ends)
    later = [*ends, *rng.choice(others, size=count - len(ends), replace=False)]
    drawn = []
    for frame in (0, *sorted(int(frame) for frame in later)):
        known = now_questions(clip, frame)
        chosen = [known[i] for i in rng.permutation(len(known))[:per_kind]]
        drawn.append(
            (
                frame,
                {
                    "benchmark": [Asked(q.text, q.answer, q.family, q.topic) for q in chosen],
                    "cell": cell_questions(clip.frames[frame], clip.family, per_kind, rng),
                    "scan": scan_questions(clip, frame, per_kind, rng),
                },
            )
        )
    return clip.frames, drawn


def draw_pictures(
    split: str, first: int, per_family: int, frames_per_clip: int, per_kind: int, workers: int
) -> Pictures:
    """Pictures and now-questions of clips first … first + per_family - 1 of every family."""
    tasks = [(family, split, index) for index in range(first, first + per_family) for family in FAMILIES]
    clips, entries, questions = [], [], []
    for number, (frames, drawn) in enumerate(
        each(partial(draw, frames_per_clip=frames_per_clip, per_kind=per_kind), tasks, workers)
    ):
        clips.append(frames)
        for frame, own in drawn:
            entries.append((number, frame))
            questions.append(own)
    return Pictures(np.stack(clips), entries, questions)


def words_of(task: tuple[str, str, int]) -> list[str]:
    """All that is asked and answered about one clip's first and last frame."""
    clip = make_clip(*task)
    rng = np.random.default_rng(task[2])
    last = len(clip.frames) - 1
    words = []
    for question in (*next_questions(clip), *now_questions(clip, 0), *now_questions(clip, last)):
        words += [question.text, question.answer, question.now_form or ""]
    for asked in (*cell_questions(clip.frames[0], clip.family, 8, rng), *scan_questions(clip, last, 16, rng)):
        words += [asked.text, asked.answer]
    return words
