"""Physics clips for training, rendered by worker processes into shard files during training.

A shard is one `.npy` file, uint8 (clips, frames, height, width, 3), the same number of clips of every family. Training
shards carry no label of any kind, and half of their scenes are unfiltered. Labelled shards (a `.json` with family and
outcome next to the `.npy`) come from the validation split and are used for measurement only. This module does not
import torch, so that workers start quickly.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from theworld.storage.files import atomic_file

if TYPE_CHECKING:
    from theworld.datasets.physics import Clip

logger = logging.getLogger(__name__)

TRAIN, LABELLED = "train", "validation"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class ClipSettings:
    """What is rendered, and how many shards may wait.

    Args:
        workers: processes; leave a core or two for the training loop.
        per_family: clips per family and shard.
        wild_per_family: unselected scenes per family and training shard, with or without a clear outcome. They cost a
            third of a `make_clip`, which rejects most proposals, and follow the same physics.
        max_clips: training clips in all.
        labelled_per_family: validation clips per family, rendered after `head_start` training shards.
        max_waiting: maximum number of unread training shards; then workers pause, which bounds the size of the folder.
    """

    workers: int = 14
    per_family: int = 48
    wild_per_family: int = 48
    max_clips: int = 800_000
    labelled_per_family: int = 3216
    head_start: int = 56
    max_waiting: int = 120


class ClipFactory:
    """Worker processes that fill `folder` with shards; use as a context manager.

    Shard k has clips k·per_family … (k+1)·per_family - 1 of every family, so the content of a folder does not depend
    on the number of workers, and a second run continues where the first one stopped.

    Args:
        folder: of the shards; memory-backed (`/dev/shm`) is best.
    """

    def __init__(
        self,
        folder: Path,
        settings: ClipSettings,
        families: tuple[str, ...],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.families = families
        for name in (TRAIN, LABELLED):
            (folder / name).mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")  # a fork would copy a parent that may hold a GPU context
        self._stop = context.Event()
        self._workers = [
            context.Process(
                target=_work, args=(folder, settings, families, worker, self._stop, os.getpid()), daemon=True
            )
            for worker in range(settings.workers)
        ]

    def __enter__(self) -> ClipFactory:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()

    def check(self) -> None:
        """Raises a RuntimeError if a worker has failed, because training would wait for its clips forever."""
        failed = [worker.exitcode for worker in self._workers if worker.exitcode]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(self._workers)} clip workers failed, exit codes {failed}.")

    def finished(self) -> bool:
        """Whether every shard has been rendered."""
        return all(worker.exitcode == 0 for worker in self._workers)

    def clips_drawn(self) -> int:
        """Training clips rendered so far, by this run and any earlier one in the same folder."""
        done = sum(1 for _ in (self.folder / TRAIN).glob("*.done"))
        return done * _shard_size(self.settings, self.families)


@dataclass(frozen=True)
class LabelledClips:
    """Validation clips with their outcomes: `frames` uint8 (n, F, H, W, 3), `families` and `outcomes` of length n."""

    frames: np.ndarray
    families: list[str]
    outcomes: list[str]


def load_labelled(folder: Path, settings: ClipSettings, families: tuple[str, ...]) -> LabelledClips | None:
    """The labelled clips, in a fixed order, or None while some are still being rendered."""
    shards = [folder / LABELLED / f"{index:06d}.npy" for index in range(_labelled_shards(settings))]
    if not all(shard.exists() for shard in shards):
        return None
    labels = [json.loads(shard.with_suffix(".json").read_text()) for shard in shards]
    return LabelledClips(
        frames=np.concatenate([np.load(shard) for shard in shards]),
        families=[family for label in labels for family in label["families"]],
        outcomes=[outcome for label in labels for outcome in label["outcomes"]],
    )


def waiting_shards(folder: Path) -> list[Path]:
    """Training shards that were rendered and not yet deleted by a reader, oldest first."""
    return sorted((folder / TRAIN).glob("*.npy"))


def _shard_size(settings: ClipSettings, families: tuple[str, ...]) -> int:
    return (settings.per_family + settings.wild_per_family) * len(families)


def _labelled_shards(settings: ClipSettings) -> int:
    return -(-settings.labelled_per_family // settings.per_family)


def _plan(settings: ClipSettings, families: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Shards in the order of rendering: enough to start training, then those for measurement, then the rest."""
    train = -(-settings.max_clips // _shard_size(settings, families))
    head = min(settings.head_start, train)
    yield from ((TRAIN, index) for index in range(head))
    yield from ((LABELLED, index) for index in range(_labelled_shards(settings)))
    yield from ((TRAIN, index) for index in range(head, train))


def _work(
    folder: Path,
    settings: ClipSettings,
    families: tuple[str, ...],
    worker: int,
    stop: Any,
    parent: int,
) -> None:
    from theworld.datasets.physics import make_clip, make_wild_frames

    os.nice(10)  # the training loop has priority
    for split, index in itertools.islice(_plan(settings, families), worker, None, settings.workers):
        shard = folder / split / f"{index:06d}.npy"
        done = shard.with_suffix(".done")  # outlives the shard, which its reader deletes
        if done.exists():
            continue
        while split == TRAIN and len(waiting_shards(folder)) >= settings.max_waiting:
            if stop.is_set() or os.getppid() != parent:
                return
            time.sleep(POLL_SECONDS)
        clips: list[Clip] = []
        frames: list[np.ndarray] = []
        for family in families:
            for number in range(index * settings.per_family, (index + 1) * settings.per_family):
                if stop.is_set() or os.getppid() != parent:
                    return
                clips.append(make_clip(family, split, number))
                frames.append(clips[-1].frames)
            if split == TRAIN:
                first = index * settings.wild_per_family
                frames += [make_wild_frames(family, first + offset) for offset in range(settings.wild_per_family)]
        if split == LABELLED:
            labels = {"families": [clip.family for clip in clips], "outcomes": [clip.outcome for clip in clips]}
            shard.with_suffix(".json").write_text(json.dumps(labels))
        with atomic_file(shard) as unfinished, unfinished.open("wb") as file:
            np.save(file, np.stack(frames))
            done.touch()
