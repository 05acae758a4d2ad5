"""Physics scenes as samples: several questions about one scene packed into one chat, with its true future."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from theworld.datasets.physics.practice import QAPair, cell_questions, scan_questions
from theworld.datasets.physics.questions import Question, next_questions, now_questions
from theworld.datasets.physics.scenes import FAMILIES, Clip, make_clip
from theworld.datasets.samples import Message, Sample, SampleDataset, conversation

LABELLED_FROM = 1_000_000  # labelled scenes are training scenes that the world model has not seen
FRAMES_PER_MOMENT = 4  # pixel frames of one latent frame; a chat may be about the last of them

TO_READ = {"now": 6, "cells": 3, "scans": 3}  # questions of a chat that practises reading

T = TypeVar("T")


@dataclass(frozen=True)
class Chat:
    """Questions and answers about one moment of one scene."""

    clip: Clip
    frame: int
    turns: tuple[tuple[str, str], ...]
    reading: bool


class PhysicsSamples(SampleDataset):
    """Chats about scenes of the three families: the first image, with questions about it and about what follows.

    Args:
        split: train, validation, test or hard.
        scenes_per_family, first_scene: scenes first_scene … first_scene + scenes_per_family - 1 of every family.
        chats_per_scene: chats about each scene, with different questions.
        what_happens, now: questions of each kind in one chat, in random order; fewer if the scene has fewer.
        reading: further chats about each scene for practice in reading latents: each is about one moment of the clip,
            with the image hidden and nothing imagined.
        to_read: questions of such a chat, by kind: `now`, and `cells` and `scans` (see `practice`).
        seed: of the draw of questions.

    Raises:
        ValueError: if the split is unknown, or if there would be no question.
    """

    def __init__(
        self,
        split: str,
        scenes_per_family: int,
        first_scene: int = 0,
        chats_per_scene: int = 1,
        what_happens: int = 1,
        now: int = 0,
        reading: int = 0,
        to_read: Mapping[str, int] = TO_READ,
        seed: int = 0,
    ) -> None:
        unknown = sorted(set(to_read) - set(TO_READ))
        if unknown:
            raise ValueError(f"to_read has a kind {unknown[0]!r}; the kinds are {', '.join(TO_READ)}.")
        num_questions = chats_per_scene * (what_happens + now) + reading * sum(to_read.values())
        counts = (scenes_per_family, chats_per_scene, what_happens, now, reading, *to_read.values())
        if min(counts) < 0 or not scenes_per_family * num_questions:
            raise ValueError(
                f"scenes_per_family is {scenes_per_family}, chats_per_scene {chats_per_scene}, what_happens "
                f"{what_happens}, now {now}, reading {reading} and to_read {dict(to_read)}: at least one question "
                "about one scene is needed."
            )
        clips = [
            make_clip(family, split, index)
            for index in range(first_scene, first_scene + scenes_per_family)
            for family in FAMILIES
        ]
        self.chats: list[Chat] = []
        for number, clip in enumerate(clips):
            for chat in range(chats_per_scene):
                rng = np.random.default_rng([seed, number, chat])
                questions = [
                    *sample_without_replacement(next_questions(clip), what_happens, rng),
                    *sample_without_replacement(now_questions(clip, 0), now, rng),
                ]
                self.chats.append(
                    Chat(clip, 0, turns_of(sample_without_replacement(questions, len(questions), rng)), False)
                )
            for chat in range(reading):
                rng = np.random.default_rng([seed, number, chat, 1])
                frame = FRAMES_PER_MOMENT * int(rng.integers(1 + (len(clip.frames) - 1) // FRAMES_PER_MOMENT))
                plain: list[Question | QAPair] = [
                    *sample_without_replacement(now_questions(clip, frame), to_read.get("now", 0), rng),
                    *cell_questions(clip.frames[frame], clip.family, to_read.get("cells", 0), rng),
                    *scan_questions(clip, frame, to_read.get("scans", 0), rng),
                ]
                self.chats.append(Chat(clip, frame, turns_of(sample_without_replacement(plain, len(plain), rng)), True))

    def __len__(self) -> int:
        return len(self.chats)

    def messages(self, index: int) -> list[Message]:
        return conversation(1, self.chats[index].turns)

    def num_world_steps(self, index: int) -> int | None:
        return 0 if self.chats[index].reading else None

    def scene(self, index: int) -> tuple[str, int, int, bool]:
        chat = self.chats[index]
        return (chat.clip.family, chat.clip.index, chat.frame, chat.reading)

    def __getitem__(self, index: int) -> Sample:
        chat = self.chats[index]
        frames = chat.clip.frames
        return Sample(
            messages=self.messages(index),
            images=(frames[chat.frame],),
            future_frames=list(frames[chat.frame + 1 :]),
            past_frames=list(frames[: chat.frame]) if chat.frame else None,
            num_world_steps=self.num_world_steps(index),
            hide_images=chat.reading,
            origin=f"{chat.clip.family}/{chat.clip.split}/{chat.clip.index}",
        )


def sample_without_replacement(questions: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """At most `count` of the questions, without repetition, in random order."""
    return [questions[number] for number in rng.permutation(len(questions))[:count]]


def turns_of(questions: Sequence[Question | QAPair]) -> tuple[tuple[str, str], ...]:
    return tuple((question.text, question.answer) for question in questions)
