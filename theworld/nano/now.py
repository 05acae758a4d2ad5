"""Pictures to read and what is asked about them *now*: the training material of stage (c).

Three kinds of questions: *benchmark* ones are those of `now_questions`, which the gate is measured on; *cells* and
*scans* (`theworld.datasets.physics.practice`) are asked in training only.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from theworld.datasets.physics import FAMILIES, make_clip, next_questions, now_questions
from theworld.datasets.physics.practice import Asked, cell_questions, scan_questions


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
