"""Which samples a run uses, and in which order: the same in every run of one seed, and after every resume.

Each use of a sample in a run has a unique index: epoch · number of samples + position in the dataset. All that is
sampled for it depends on this index only, so that resuming needs no more than the number of finished batches. A stream
has parts, each with a position, and a checkpoint holds these (`StreamState`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from theworld.datasets.collator import ChatCollator, IndexedSample
from theworld.datasets.samples import Sample, SampleDataset
from theworld.datasets.streams import Position, StreamedSamples

logger = logging.getLogger(__name__)

LENGTHS_AT_ONCE = 1000


class IndexedSamples(Dataset):
    """The samples of a dataset that a run uses, by their unique indices.

    Args:
        kept: positions in the dataset of the samples that are used.
        deterministic: for evaluation, where nothing is sampled.
    """

    def __init__(self, dataset: SampleDataset, kept: Sequence[int], deterministic: bool = False) -> None:
        self.dataset = dataset
        self.kept = list(kept)
        self.deterministic = deterministic

    def __len__(self) -> int:
        return len(self.kept)

    def groups(self) -> list[int | None]:
        """Each sample's own number of world steps, if it has one; only equal ones may share a batch."""
        return [self.dataset.num_world_steps(position) for position in self.kept]

    def sample(self, index: int) -> Sample:
        """The sample at this position among the used ones."""
        found: Sample = self.dataset[self.kept[index]]
        return found

    def scenes(self) -> list[int]:
        """The index of the first sample of every scene."""
        first: dict[Hashable, int] = {}
        for index, position in enumerate(self.kept):
            first.setdefault(self.dataset.scene(position), index)
        return list(first.values())

    def __getitem__(self, index: int) -> IndexedSample:
        return IndexedSample(index, self.sample(index % len(self.kept)), self.deterministic)


class EpochOrder(Sampler[int]):
    """The indices of one epoch, shuffled by seed and epoch.

    Samples with different numbers of world steps are in different batches. The last samples of such a group, too few
    for a batch, are left out in this epoch; another epoch has another order.

    Args:
        groups: the group of each sample; only samples of one group share a batch.
        batch_size: of all processes together.

    Raises:
        ValueError: if no group fills a batch.
    """

    def __init__(self, groups: Sequence[Any], batch_size: int, seed: int) -> None:
        self.members: dict[Any, list[int]] = {}
        for index, group in enumerate(groups):
            self.members.setdefault(group, []).append(index)
        self.total = len(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.length = self.total
        if len(self.members) > 1:
            self.length = sum(len(group) // batch_size * batch_size for group in self.members.values())
        if self.length == 0:
            raise ValueError(
                f"No group of samples with equal num_world_steps has {batch_size} of them; set a smaller batch_size."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        orders = [rng.permutation(group) for group in self.members.values()]
        if len(orders) > 1:
            batches = [
                order[start : start + self.batch_size]
                for order in orders
                for start in range(0, len(order) - self.batch_size + 1, self.batch_size)
            ]
            orders = [batches[number] for number in rng.permutation(len(batches))]
        yield from (self.epoch * self.total + int(index) for order in orders for index in order)


@dataclass
class StreamState:
    """How far a run has read its stream.

    Attributes:
        num_parts: parts that the stream is read in.
        batches: batches that were trained on, of all processes.
        positions: of each part that was read.
    """

    num_parts: int
    batches: int = 0
    positions: dict[int, Position] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamState:
        positions = {int(part): Position(**position) for part, position in values["positions"].items()}
        return cls(values["num_parts"], values["batches"], positions)

    def workers(self, num_processes: int, requested: int) -> int:
        """How many worker processes of each training process can share the parts: at most `requested`.

        Raises:
            ValueError: if the training processes cannot share them equally.
        """
        if self.num_parts % num_processes:
            raise ValueError(
                f"This run reads its stream in {self.num_parts} parts, which {num_processes} processes cannot share "
                "equally; use a number of processes that divides it, or set stream_parts in a new run."
            )
        share = self.num_parts // num_processes
        return next(number for number in range(max(requested, 1), 0, -1) if share % number == 0)


@dataclass(frozen=True)
class StreamBatch:
    """The samples of one batch, and how far its part of the stream was read with them."""

    samples: list[IndexedSample]
    part: int
    position: Position


class IndexedStream(IterableDataset):
    """Batches of a stream, without end; longer samples are left out and counted.

    Batch number b of a run is made of part b mod `num_parts`. Which samples share a batch, and their order, therefore
    depend on the number of parts only, and not on the number of processes and workers that share the parts.

    Args:
        max_text_tokens: limit on the text tokens of a sample; None accepts any length.
        batch_size: samples of a batch.

    Attributes:
        state: where to begin.
        rank, num_processes: of this training process, whose batches are given.

    Raises:
        ValueError: if a part has no sample that is short enough.
    """

    def __init__(
        self,
        dataset: StreamedSamples,
        collator: ChatCollator,
        max_text_tokens: int | None,
        batch_size: int,
        num_parts: int = 1,
    ) -> None:
        self.dataset = dataset
        self.collator = collator
        self.max_text_tokens = max_text_tokens
        self.batch_size = batch_size
        self.state = StreamState(num_parts)
        self.rank, self.num_processes = 0, 1

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        opened: dict[int, Iterator[tuple[IndexedSample, Position]]] = {}
        first = self.state.batches + self.rank + number * self.num_processes
        for batch in itertools.count(first, workers * self.num_processes):
            part = batch % self.state.num_parts
            if part not in opened:
                opened[part] = self.samples(part, self.state.positions.get(part, Position()))
            samples, positions = zip(*itertools.islice(opened[part], self.batch_size), strict=True)
            yield StreamBatch(list(samples), part, positions[-1])

    def samples(self, part: int, position: Position) -> Iterator[tuple[IndexedSample, Position]]:
        """The samples of a part from a position on, with the position after each; epoch after epoch."""
        limit, num_parts = self.max_text_tokens, self.state.num_parts
        num_skipped = 0
        while True:
            is_whole, rows, found, kept = position.row == 0, 0, 0, 0
            for sample, reached in self.dataset.epoch(part, num_parts, position):
                position = reached
                rows, found = rows + 1, found + (sample is not None)
                if sample is None:
                    continue
                if limit is not None and self.collator.text_lengths([sample.messages])[0] > limit:
                    num_skipped += 1
                    continue
                kept += 1
                yield IndexedSample((position.total - 1) * num_parts + part, sample, num_skipped=num_skipped), position
                num_skipped = 0
            if is_whole and not kept:
                raise ValueError(self._why_empty(part, rows, found))
            position = Position(position.epoch + 1, total=position.total)

    def _why_empty(self, part: int, rows: int, found: int) -> str:
        if not rows:
            return (
                f"Part {part + 1} of {self.state.num_parts} of the stream has no rows; set stream_parts to at most the "
                "number of rows, or use fewer processes and workers."
            )
        if not found:
            return f"None of the {rows} rows of the stream has a sample; the log counts why."
        return f"The stream has no sample of at most {self.max_text_tokens} text tokens; increase max_seq_length."


def filter_by_length(
    dataset: SampleDataset, collator: ChatCollator, max_text_tokens: int | None, name: str, most: int | None = None
) -> list[int]:
    """Positions of the samples with at most `max_text_tokens`. The log counts the others; samples are never truncated.

    Every chat is read, so that a wrong one is found before the training.

    Args:
        max_text_tokens: None accepts any length.
        most: considers only the first samples, up to this number.

    Raises:
        ValueError: if no sample is short enough, or if there are none.
    """
    kept: list[int] = []
    longest = 0
    total = len(dataset) if most is None else min(most, len(dataset))
    if max_text_tokens is None:
        if not total:
            raise ValueError(f"There are no {name} samples; check the dataset.")
        for index in range(total):
            dataset.messages(index)
        return list(range(total))
    for start in range(0, total, LENGTHS_AT_ONCE):
        indices = range(start, min(start + LENGTHS_AT_ONCE, total))
        lengths = collator.text_lengths([dataset.messages(index) for index in indices])
        kept += [index for index, length in zip(indices, lengths, strict=True) if length <= max_text_tokens]
        longest = max(longest, *lengths)
    if not kept:
        raise ValueError(
            f"None of the {total} {name} samples has at most {max_text_tokens} text tokens (the longest has "
            f"{longest}); increase max_seq_length."
        )
    if len(kept) < total:
        logger.warning(
            "%d of %d %s samples have more than %d text tokens and are left out (the longest has %d)",
            total - len(kept), total, name, max_text_tokens, longest,
        )  # fmt: skip
    return kept
