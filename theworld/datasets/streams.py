"""Streams: rows without a length, split into parts, shuffled in blocks, and resumed at any row.

A part is read by one process from its beginning to its end, independently of the other parts. Its rows are read in
blocks, which are shuffled, and then become samples. A `Position` says how far a part was read: resuming reads the rows
of one block again, and makes no sample of what came before, so that nothing is downloaded twice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from theworld.datasets.samples import Sample, naming, to_sample

BLOCK = 100  # rows that are read at a time if they are not shuffled
Record = Mapping[str, Any] | Sample
Read = Callable[[Iterator[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Position:
    """How far one part of a stream was read. Its values can be written as JSON.

    Attributes:
        epoch: how often the part was read to its end.
        row: rows of this epoch that were read.
        taken: samples of this epoch.
        total: samples of all epochs.
        block: rows of this epoch before the block that is being read.
        state: of the rows before this block, for sources that can continue from a state.
    """

    epoch: int = 0
    row: int = 0
    taken: int = 0
    total: int = 0
    block: int = 0
    state: Any = None


class StreamedSamples(IterableDataset):
    """Makes samples of a stream of rows.

    Args:
        rows: a streamed dataset of `datasets`, or an iterable that gives the same rows in every iteration.
        read: makes one record, or None, of each row, in order; None if the rows are records.
        folder: what relative paths of images are relative to.
        limit: the largest number of samples of an epoch; None for all.
        origin: name of the rows, for error messages.
        shuffle: rows that are shuffled together; 0 keeps their order.
        seed: of the shuffling.
        record: makes the record of what `read` gives; None if that is a record.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        read: Read | None = None,
        folder: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        origin: str = "streamed record",
        shuffle: int = 0,
        seed: int = 0,
        record: Callable[[Any], Record] | None = None,
    ) -> None:
        self.rows = rows
        self.read: Read = iter if read is None else read
        self.folder = None if folder is None else Path(folder)
        self.limit = limit
        self.origin = origin
        self.shuffle = shuffle
        self.seed = seed
        self.record = record

    def __iter__(self) -> Iterator[Sample]:
        for sample, _ in self.epoch():
            if sample is not None:
                yield sample

    def epoch(
        self, part: int = 0, num_parts: int = 1, start: Position | None = None
    ) -> Iterator[tuple[Sample | None, Position]]:
        """Reads one of `num_parts` parts from a position to the end of the epoch.

        Yields:
            The sample of each row, or None for a row without one, and the position after it.
        """
        at = Position() if start is None else start
        quota = None if self.limit is None else self.limit // num_parts + (part < self.limit % num_parts)
        reached = deque[Position]()

        def rows() -> Iterator[Any]:
            for row, position in self._rows(part, num_parts, at):
                reached.append(position)
                yield row

        taken, total = at.taken, at.total
        records = iter(self.read(rows()))
        while taken != quota and (item := next(records, rows)) is not rows:
            position = reached.popleft()
            number = (position.row - 1) * num_parts + part
            sample = None if item is None else self._sample(item, f"{self.origin} {number}")
            taken, total = taken + (sample is not None), total + (sample is not None)
            yield sample, replace(position, taken=taken, total=total)

    def _sample(self, item: Any, origin: str) -> Sample:
        with naming(origin):
            record = item if self.record is None else self.record(item)
        return to_sample(record, origin, self.folder)

    def _rows(self, part: int, num_parts: int, at: Position) -> Iterator[tuple[Any, Position]]:
        """The rows of an epoch after a position, in shuffled order, with the position after each."""
        blocks = blocks_of(self.rows, part, num_parts, self.shuffle or BLOCK, at)
        first = at.block
        for rows, state in blocks:
            order = np.arange(len(rows))
            if self.shuffle:
                order = np.random.default_rng([self.seed, at.epoch, part, first]).permutation(len(rows))
            for number, row in enumerate(order.tolist(), start=first + 1):
                if number > at.row:
                    yield rows[row], Position(at.epoch, number, block=first, state=state)
            first += len(rows)


def blocks_of(
    rows: Iterable[Any], part: int, num_parts: int, size: int, at: Position
) -> Iterator[tuple[list[Any], Any]]:
    """The rows of a part in blocks, from the block of a position on, with the state of the source before each block."""
    if hasattr(
        rows, "load_state_dict"
    ):  # a streamed dataset of `datasets`, which continues without reading everything again
        from datasets.distributed import split_dataset_by_node

        dataset: Any = split_dataset_by_node(rows, part, num_parts)
        if at.state is not None:
            dataset.load_state_dict(at.state)
        state = at.state
        for columns in dataset.iter(size):  # which, unlike `iter(dataset)`, does not split it by workers once more
            yield [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)], state
            state = dataset.state_dict()
        return
    source = islice(iter(rows), part + num_parts * at.block, None, num_parts)
    while block := list(islice(source, size)):
        yield block, None
