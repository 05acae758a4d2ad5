"""Pictures to read and what is asked about them *now*: the samples of stage (c).

Three kinds of questions: *benchmark* ones are those of `now_questions`, which the gate is measured on; *cells* and
*scans* (`theworld.datasets.physics.practice`) are asked in training only.

Shapes: n clips, F pixel frames, p pictures, C latent channels, T latent frames, h×w latent grid.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theworld.datasets.physics import FAMILIES, make_clip, next_questions, now_questions
from theworld.datasets.physics.practice import QAPair, cell_questions, scan_questions
from theworld.datasets.physics.samples import sample_without_replacement, turns_of
from theworld.datasets.samples import Message, Sample, SampleDataset, conversation
from theworld.world_models.base import WorldModel


@dataclass
class Pictures:
    """Clips with questions about some of their frames.

    `clips` uint8 (n, F, H, W, 3); `entries` name a clip and a frame; `questions` belong to the entries, by kind.
    """

    clips: np.ndarray
    entries: list[tuple[int, int]]
    questions: list[dict[str, list[QAPair]]]


@dataclass
class Latents:
    """What a world model's encoder makes of pictures: each `alone` (p, C, 1, h, w), and `clips` (n, C, T, h, w)."""

    alone: Tensor
    clips: Tensor


def each(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """`function` of every task, in order, by so many processes; by none but this one when `workers` is 0."""
    if workers == 0:
        yield from map(function, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(function, tasks, chunksize=8)


def draw(
    task: tuple[str, str, int], frames_per_clip: int, per_kind: int
) -> tuple[np.ndarray, list[tuple[int, dict[str, list[QAPair]]]]]:
    """One clip and up to `per_kind` questions of each kind about some of its frames, the first among them."""
    clip = make_clip(*task)
    rng = np.random.default_rng(task[2])
    count = frames_per_clip - 1
    ends = rng.permutation(np.arange(4, len(clip.frames), 4))[: count // 2]  # moments that end a latent frame
    others = np.setdiff1d(np.arange(1, len(clip.frames)), ends)
    later = [*ends, *rng.choice(others, size=count - len(ends), replace=False)]
    drawn = []
    for frame in (0, *sorted(int(frame) for frame in later)):
        chosen = sample_without_replacement(now_questions(clip, frame), per_kind, rng)
        drawn.append(
            (
                frame,
                {
                    "benchmark": [QAPair(q.text, q.answer, q.family, q.topic) for q in chosen],
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


@torch.no_grad()
def encode_pictures(pictures: Pictures, world: WorldModel) -> Latents:
    """The latents of all pictures and clips, on the CPU."""
    device = next(world.parameters()).device

    def encode(frames: np.ndarray) -> Tensor:
        pixels = (torch.from_numpy(frames).to(device).float() / 127.5 - 1).permute(0, 4, 1, 2, 3)  # (n, 3, F, H, W)
        return world.encode(pixels).float().cpu()

    clip, frame = np.array(pictures.entries).T
    alone = [encode(pictures.clips[clip[i : i + 512], frame[i : i + 512], None]) for i in range(0, len(clip), 512)]
    whole = [encode(pictures.clips[i : i + 64]) for i in range(0, len(pictures.clips), 64)]
    return Latents(torch.cat(alone), torch.cat(whole))


class NowSamples(SampleDataset):
    """Chats about pictures, several questions each; every sample brings its latents.

    Args:
        latents: of the pictures.
        turns: questions of each kind in one chat, in random order; a picture that has fewer gives fewer.
        chats_of_first, chats_of_later: chats about the first picture of a clip, and about each later one.
        late: share of the chats about a later picture whose latents are those inside its clip, where they stand for
            four frames; both are the same moment, but they are not the same numbers.
        ahead: whether chats about a first picture bring the moments after it as well, for batches that look ahead.
        hidden: share of chats whose picture the world model alone sees.
        temporal_factor: frames of one later latent frame.
        seed: of which questions are drawn.
    """

    def __init__(
        self,
        pictures: Pictures,
        latents: Latents,
        turns: Mapping[str, int],
        chats_of_first: int = 1,
        chats_of_later: int = 1,
        late: float = 0.5,
        ahead: bool = False,
        hidden: float = 0.0,
        temporal_factor: int = 4,
        seed: int = 0,
    ) -> None:
        self.pictures = pictures
        self.latents = latents
        self.turns = dict(turns)
        self.late = late
        self.ahead = ahead
        self.hidden = hidden
        self.temporal_factor = temporal_factor
        self.seed = seed
        self.chats = [
            (entry, chat)
            for entry, (_, frame) in enumerate(pictures.entries)
            for chat in range(chats_of_later if frame else chats_of_first)
        ]

    def __len__(self) -> int:
        return len(self.chats)

    def asked(self, index: int) -> list[QAPair]:
        """The questions of one chat."""
        entry, chat = self.chats[index]
        rng = np.random.default_rng([self.seed, entry, chat])
        own = self.pictures.questions[entry]
        drawn = [
            asked for kind, count in self.turns.items() for asked in sample_without_replacement(own[kind], count, rng)
        ]
        return sample_without_replacement(drawn, len(drawn), rng)

    def messages(self, index: int) -> list[Message]:
        return conversation(1, turns_of(self.asked(index)))

    def num_world_steps(self, index: int) -> int | None:
        first = self.pictures.entries[self.chats[index][0]][1] == 0
        return None if first and self.ahead else 0

    def __getitem__(self, index: int) -> Sample:
        entry, chat = self.chats[index]
        clip, frame = self.pictures.entries[entry]
        rng = np.random.default_rng([self.seed, entry, chat, 1])
        late, hidden = rng.random() < self.late, rng.random() < self.hidden
        if frame == 0:
            latents = self.latents.clips[clip]  # of which a batch reads as many moments as it looks ahead
        elif late and frame % self.temporal_factor == 0:
            latents = self.latents.clips[clip][:, frame // self.temporal_factor][:, None]
        else:
            latents = self.latents.alone[entry]
        return Sample(
            messages=self.messages(index),
            images=(self.pictures.clips[clip, frame],),
            world_latents=latents,
            num_world_steps=self.num_world_steps(index),
            hide_images=bool(hidden),
            origin=f"clip {clip}, frame {frame}",
        )


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
