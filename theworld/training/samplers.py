"""Which samples a run uses, and in which order: the same in every run of one seed, and after every resume.

Each sample of a run has a place, a number that no other one has: epoch · samples + where it stands in the dataset. What
is drawn for it depends on its place alone, so nothing but the number of batches done has to be remembered.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler

from theworld.datasets.collator import ChatCollator, IndexedSample
from theworld.datasets.samples import Sample, SampleDataset

logger = logging.getLogger(__name__)

LENGTHS_AT_ONCE = 1000


class IndexedSamples(Dataset):
    """The kept samples of a dataset, asked for by their places.

    Args:
        kept: indices of the samples that are used.
        still: for evaluation, where nothing is drawn.
    """

    def __init__(self, dataset: SampleDataset, kept: Sequence[int], still: bool = False) -> None:
        self.dataset = dataset
        self.kept = list(kept)
        self.still = still

    def __len__(self) -> int:
        return len(self.kept)

    def groups(self) -> list[int | None]:
        """How far ahead each kept sample looks by its own will."""
        return [self.dataset.num_world_steps(index) for index in self.kept]

    def sample(self, index: int) -> Sample:
        """One of the kept samples."""
        found: Sample = self.dataset[self.kept[index]]
        return found

    def scenes(self) -> list[int]:
        """One place of every scene, the first."""
        first: dict[Hashable, int] = {}
        for place, index in enumerate(self.kept):
            first.setdefault(self.dataset.scene(index), place)
        return list(first.values())

    def __getitem__(self, place: int) -> IndexedSample:
        return IndexedSample(place, self.sample(place % len(self.kept)), self.still)


class EpochOrder(Sampler[int]):
    """The places of one epoch, shuffled by seed and epoch.

    Samples that look differently far ahead are in different batches. The last samples of such a group, too few for a
    batch, wait for another epoch, which shuffles anew.

    Args:
        groups: for each sample, which group it is of; samples of one group may share a batch.
        batch_size: of all processes together, times what is accumulated in one.
    """

    def __init__(self, groups: Sequence[Any], batch_size: int, seed: int) -> None:
        self.members: dict[Any, list[int]] = {}
        for index, group in enumerate(groups):
            self.members.setdefault(group, []).append(index)
        self.total = len(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        if len(self.members) > 1:
            self.length = sum(len(own) // batch_size * batch_size for own in self.members.values())
        else:
            self.length = self.total
        if self.length == 0:
            raise ValueError(
                f"no group of samples that look equally far ahead has {batch_size} of them; take a smaller batch_size."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        orders = [rng.permutation(own) for own in self.members.values()]
        if len(orders) > 1:
            batches = [
                order[start : start + self.batch_size]
                for order in orders
                for start in range(0, len(order) - self.batch_size + 1, self.batch_size)
            ]
            orders = [batches[number] for number in rng.permutation(len(batches))]
        yield from (self.epoch * self.total + int(index) for order in orders for index in order)


class IndexedStream(IterableDataset):
    """A stream's samples in its own order, over and over; what is too long is left out and counted as it passes.

    Args:
        max_text_tokens: of a sample that is used.
    """

    def __init__(self, dataset: IterableDataset, collator: ChatCollator, max_text_tokens: int | None) -> None:
        self.dataset = dataset
        self.collator = collator
        self.max_text_tokens = max_text_tokens

    def __iter__(self) -> Iterator[IndexedSample]:
        place = left_out = 0
        for _ in itertools.count():
            before = place
            for sample in self.dataset:
                limit = self.max_text_tokens
                if limit is not None and self.collator.text_lengths([sample.messages])[0] > limit:
                    left_out += 1
                    continue
                yield IndexedSample(place, sample, left_out=left_out)
                place, left_out = place + 1, 0
            if place == before:
                raise ValueError(
                    f"the stream has no sample of at most {self.max_text_tokens} text tokens; raise max_seq_length."
                )


def fitting(
    dataset: SampleDataset, collator: ChatCollator, max_text_tokens: int | None, name: str, most: int | None = None
) -> list[int]:
    """Indices of the samples whose text fits; the others are counted in the log, and no sample is ever cut.

    Args:
        max_text_tokens: None looks at no length.
        most: looks at so many samples, the first ones.

    Raises:
        ValueError: none fits, or there is none.
    """
    kept: list[int] = []
    longest = 0
    total = len(dataset) if most is None else min(most, len(dataset))
    if max_text_tokens is None:
        if not total:
            raise ValueError(f"there are no {name} samples; give some.")
        return list(range(total))
    for start in range(0, total, LENGTHS_AT_ONCE):
        indices = range(start, min(start + LENGTHS_AT_ONCE, total))
        lengths = collator.text_lengths([dataset.messages(index) for index in indices])
        kept += [index for index, length in zip(indices, lengths, strict=True) if length <= max_text_tokens]
        longest = max(longest, *lengths)
    if not kept:
        raise ValueError(
            f"none of the {total} {name} samples has at most {max_text_tokens} text tokens (the longest has "
            f"{longest}); raise max_seq_length, or give samples."
        )
    if len(kept) < total:
        logger.warning(
            "%d of %d %s samples have more than %d text tokens and are left out (the longest has %d)",
            total - len(kept), total, name, max_text_tokens, longest,
        )  # fmt: skip
    return kept
