"""Physics scenes as samples: several questions about one scene packed into one chat, with its true future."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theworld.datasets.physics.questions import next_questions, now_questions
from theworld.datasets.physics.scenes import FAMILIES, make_clip
from theworld.datasets.samples import Message, Sample, SampleDataset, conversation

LABELLED_FROM = 1_000_000  # labelled scenes are training scenes that the world model was not trained on


class PhysicsSamples(SampleDataset):
    """Chats about scenes of the three families: the first picture, what is asked about it and about what follows.

    Args:
        split: train, validation, test or hard.
        scenes_per_family, first_scene: scenes first_scene … first_scene + scenes_per_family - 1 of every family.
        chats_per_scene: chats about each scene, each with questions of its own.
        what_happens, now: questions of each kind in one chat, in random order; a scene that has fewer gives fewer.
        seed: of which questions are drawn.

    Raises:
        ValueError: an unknown split, or numbers that leave nothing to ask.
    """

    def __init__(
        self,
        split: str,
        scenes_per_family: int,
        first_scene: int = 0,
        chats_per_scene: int = 1,
        what_happens: int = 1,
        now: int = 0,
        seed: int = 0,
    ) -> None:
        if scenes_per_family < 1 or chats_per_scene < 1 or what_happens < 0 or now < 0 or what_happens + now < 1:
            raise ValueError(
                f"scenes_per_family is {scenes_per_family}, chats_per_scene {chats_per_scene}, what_happens "
                f"{what_happens} and now {now}; ask at least one question about one scene."
            )
        self.clips = [
            make_clip(family, split, index)
            for index in range(first_scene, first_scene + scenes_per_family)
            for family in FAMILIES
        ]
        self.chats_per_scene = chats_per_scene
        self.turns = [
            self._draw(number, (what_happens, now), np.random.default_rng([seed, number, chat]))
            for number in range(len(self.clips))
            for chat in range(chats_per_scene)
        ]

    def _draw(self, number: int, counts: Sequence[int], rng: np.random.Generator) -> list[tuple[str, str]]:
        clip = self.clips[number]
        kinds = (next_questions(clip), now_questions(clip, 0))
        drawn = [own[i] for own, count in zip(kinds, counts, strict=True) for i in rng.permutation(len(own))[:count]]
        return [(drawn[i].text, drawn[i].answer) for i in rng.permutation(len(drawn))]

    def __len__(self) -> int:
        return len(self.turns)

    def messages(self, index: int) -> list[Message]:
        return conversation(1, self.turns[index])

    def __getitem__(self, index: int) -> Sample:
        clip = self.clips[index // self.chats_per_scene]
        return Sample(
            messages=self.messages(index),
            images=(clip.frames[0],),
            future_frames=list(clip.frames[1:]),
            origin=f"{clip.family}/{clip.split}/{clip.index}",
        )
