"""Images with questions about the present: the samples of stage (c).

There are three kinds of questions: *benchmark* questions are those of `now_questions`, for which the final accuracy is
measured; *cell* and *scan* questions (`theworld.datasets.physics.practice`) are used in training only.

Shapes: n clips, F pixel frames, p images, C latent channels, T latent frames, h×w latent grid.
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
class Images:
    """Clips with questions about some of their frames.

    `clips` uint8 (n, F, H, W, 3); `entries` are (clip, frame) indices; `questions` has those of each entry, by kind.
    """

    clips: np.ndarray
    entries: list[tuple[int, int]]
    questions: list[dict[str, list[QAPair]]]


@dataclass
class Latents:
    """Latents of images: each encoded `alone` (p, C, 1, h, w), and those of whole `clips` (n, C, T, h, w)."""

    alone: Tensor
    clips: Tensor


def pool_map(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """`function` of every task, in order, in `workers` processes; in this process if `workers` is 0."""
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
    ends = rng.permutation(np.arange(4, len(clip.frames), 4))[: count // 2]  # frames that end a latent frame
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


def draw_images(split: str, first: int, per_family: int, frames_per_clip: int, per_kind: int, workers: int) -> Images:
    """Images and questions of clips first … first + per_family - 1 of every family."""
    tasks = [(family, split, index) for index in range(first, first + per_family) for family in FAMILIES]
    clips, entries, questions = [], [], []
    for number, (frames, drawn) in enumerate(
        pool_map(partial(draw, frames_per_clip=frames_per_clip, per_kind=per_kind), tasks, workers)
    ):
        clips.append(frames)
        for frame, own in drawn:
            entries.append((number, frame))
            questions.append(own)
    return Images(np.stack(clips), entries, questions)


@torch.no_grad()
def encode_images(images: Images, world: WorldModel) -> Latents:
    """The latents of all images and clips, on the CPU."""
    device = next(world.parameters()).device

    def encode(frames: np.ndarray) -> Tensor:
        pixels = (torch.from_numpy(frames).to(device).float() / 127.5 - 1).permute(0, 4, 1, 2, 3)  # (n, 3, F, H, W)
        return world.encode(pixels).float().cpu()

    clip, frame = np.array(images.entries).T
    alone = [encode(images.clips[clip[i : i + 512], frame[i : i + 512], None]) for i in range(0, len(clip), 512)]
    whole = [encode(images.clips[i : i + 64]) for i in range(0, len(images.clips), 64)]
    return Latents(torch.cat(alone), torch.cat(whole))


class NowSamples(SampleDataset):
    """Chats with several questions about one image; every sample contains its latents.

    Args:
        latents: of the images.
        turns: questions of each kind per chat, in random order; fewer if the image has fewer.
        chats_of_first, chats_of_later: chats about the first frame of a clip, and about each later one.
        late: share of the chats about a later frame with the latents from inside its clip, which cover four frames and
            differ from those of the frame alone.
        ahead: whether chats about a first frame contain the later latent frames as well.
        hidden: share of chats whose image only the world model sees.
        temporal_factor: pixel frames per later latent frame.
        seed: of the sampled questions.
    """

    def __init__(
        self,
        images: Images,
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
        self.images = images
        self.latents = latents
        self.turns = dict(turns)
        self.late = late
        self.ahead = ahead
        self.hidden = hidden
        self.temporal_factor = temporal_factor
        self.seed = seed
        self.chats = [
            (entry, chat)
            for entry, (_, frame) in enumerate(images.entries)
            for chat in range(chats_of_later if frame else chats_of_first)
        ]

    def __len__(self) -> int:
        return len(self.chats)

    def asked(self, index: int) -> list[QAPair]:
        """The questions of one chat."""
        entry, chat = self.chats[index]
        rng = np.random.default_rng([self.seed, entry, chat])
        own = self.images.questions[entry]
        drawn = [
            asked for kind, count in self.turns.items() for asked in sample_without_replacement(own[kind], count, rng)
        ]
        return sample_without_replacement(drawn, len(drawn), rng)

    def messages(self, index: int) -> list[Message]:
        return conversation(1, turns_of(self.asked(index)))

    def num_world_steps(self, index: int) -> int | None:
        first = self.images.entries[self.chats[index][0]][1] == 0
        return None if first and self.ahead else 0

    def __getitem__(self, index: int) -> Sample:
        entry, chat = self.chats[index]
        clip, frame = self.images.entries[entry]
        rng = np.random.default_rng([self.seed, entry, chat, 1])
        late, hidden = rng.random() < self.late, rng.random() < self.hidden
        if frame == 0:
            latents = self.latents.clips[clip]  # a batch uses as many latent frames as it needs
        elif late and frame % self.temporal_factor == 0:
            latents = self.latents.clips[clip][:, frame // self.temporal_factor][:, None]
        else:
            latents = self.latents.alone[entry]
        return Sample(
            messages=self.messages(index),
            images=(self.images.clips[clip, frame],),
            world_latents=latents,
            num_world_steps=self.num_world_steps(index),
            hide_images=bool(hidden),
            origin=f"clip {clip}, frame {frame}",
        )


def words_of(task: tuple[str, str, int]) -> list[str]:
    """All questions and answers about the first and last frame of a clip."""
    clip = make_clip(*task)
    rng = np.random.default_rng(task[2])
    last = len(clip.frames) - 1
    words = []
    for question in (*next_questions(clip), *now_questions(clip, 0), *now_questions(clip, last)):
        words += [question.text, question.answer, question.now_form or ""]
    for asked in (*cell_questions(clip.frames[0], clip.family, 8, rng), *scan_questions(clip, last, 16, rng)):
        words += [asked.text, asked.answer]
    return words
