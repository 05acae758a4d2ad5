"""Every sample once per epoch, in an order that depends on seed and epoch; streams leave out long samples."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import count, islice, product
from types import SimpleNamespace

import pytest

from tests.training.conftest import records
from theworld.datasets.streams import StreamedSamples
from theworld.training import recipe, samplers
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import describe
from theworld.training.samplers import EpochOrder, IndexedStream, StreamBatch, StreamState


def test_an_epoch_is_a_reproducible_shuffle() -> None:
    order = EpochOrder([None] * 10, 4, seed=3)
    first = list(order)
    assert sorted(first) == list(range(10)) != first
    assert list(order) == first == list(EpochOrder([None] * 10, 4, seed=3))
    order.set_epoch(2)
    later = list(order)
    assert sorted(later) == list(range(20, 30))  # indices are unique in a run
    assert [index - 20 for index in later] != first
    assert list(EpochOrder([None] * 10, 4, seed=4)) != first


def test_samples_with_different_world_steps_are_in_different_batches() -> None:
    groups = [None, 0, None, 0, None, 0, 0, None, None, 0, 2]
    order = EpochOrder(groups, 2, seed=0)
    batches = []
    for epoch in range(6):
        order.set_epoch(epoch)
        indices = list(order)
        assert len(indices) == len(order) == 8
        batches += [tuple(index % 11 for index in indices[start : start + 2]) for start in range(0, 8, 2)]
    assert all(groups[a] == groups[b] for a, b in batches)
    used = {index for batch in batches for index in batch}
    assert used == set(range(10))  # those left out are used in another epoch; a single sample fills no batch
    kinds = [groups[a] for a, _ in batches[:4]]
    assert kinds != sorted(kinds, key=str)
    with pytest.raises(ValueError, match="set a smaller batch_size"):
        EpochOrder([0, None], 2, seed=0)


def test_a_stream_repeats_and_counts_what_it_leaves_out(settings: Callable[..., TrainingConfig]) -> None:
    config = settings()
    collator = recipe.new_collator(config, describe(config))
    chats = records(3)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    stream = iter(IndexedStream(StreamedSamples(chats), collator, 60, batch_size=2))
    first, second = next(stream), next(stream)
    assert [each.index for batch in (first, second) for each in batch.samples] == [0, 2, 3, 5]
    assert [each.num_skipped for batch in (first, second) for each in batch.samples] == [0, 1, 0, 1]
    assert (first.position.row, second.position.row, second.position.epoch) == (3, 3, 1)
    assert collator(first.samples)["num_skipped"] == 1
    with pytest.raises(ValueError, match="no sample of at most 3 text tokens"):
        next(iter(IndexedStream(StreamedSamples(chats), collator, 3, 2)))
    with pytest.raises(ValueError, match="Part 4 of 4 of the stream has no rows"):
        list(islice(IndexedStream(StreamedSamples(records(3)), collator, 60, 1, num_parts=4), 4))
    with pytest.raises(ValueError, match="None of the 3 rows of the stream has a sample"):
        next(iter(IndexedStream(StreamedSamples(chats, lambda rows: (None for _ in rows)), collator, 60, 2)))


def batches_of(
    stream: IndexedStream, num_processes: int, workers: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> list[StreamBatch]:
    """The batches of all processes and their workers in the order in which they are trained on."""
    readers = {}
    for rank, worker in product(range(num_processes), range(workers)):
        own = copy.copy(stream)
        own.rank, own.num_processes = rank, num_processes
        with monkeypatch.context() as patch:
            info = SimpleNamespace(id=worker, num_workers=workers)
            patch.setattr(samplers, "get_worker_info", lambda info=info: info)
            reader = iter(own)
            readers[rank, worker] = [next(reader) for _ in range(-(-number // num_processes // workers))]
    order = ((rank, turn % workers, turn // workers) for turn in count() for rank in range(num_processes))
    return [readers[rank, worker][turn] for rank, worker, turn in islice(order, number)]


@pytest.mark.parametrize("shuffle", [0, 7])
def test_batches_of_a_stream_do_not_depend_on_processes_and_workers(
    settings: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch, shuffle: int
) -> None:
    """Nor on where a run was interrupted, or on the number of processes afterwards."""
    config = settings()
    collator = recipe.new_collator(config, describe(config))
    chats = [{"text": f"Question {number}?", "label": "yes"} for number in range(50)]

    def stream() -> IndexedStream:
        return IndexedStream(StreamedSamples(chats, shuffle=shuffle), collator, None, batch_size=3, num_parts=4)

    def texts(batches: list[StreamBatch]) -> list[list[str]]:
        return [[each.sample.messages[0]["content"][-1]["text"] for each in batch.samples] for batch in batches]

    whole = batches_of(stream(), 1, 1, 40, monkeypatch)
    indices = [each.index for batch in whole for each in batch.samples]
    assert len(set(indices)) == len(indices) == 120
    once = [text for batch in texts(whole[:16]) for text in batch]  # four batches of each part
    assert len(set(once)) == 48, "no sample is repeated within an epoch"
    for processes, workers in ((1, 2), (2, 1), (2, 2), (4, 1), (1, 4)):
        assert texts(batches_of(stream(), processes, workers, 40, monkeypatch)) == texts(whole)
    for cut, processes, workers in product((1, 5, 18, 30), (1, 2, 4), (1, 2)):
        if 4 % (processes * workers) == 0:
            resumed = stream()
            resumed.state = StreamState(4, cut, {batch.part: batch.position for batch in whole[:cut]})
            written = json.loads(json.dumps(asdict(resumed.state)))
            assert StreamState.from_dict(written) == resumed.state
            assert texts(batches_of(resumed, processes, workers, 40 - cut, monkeypatch)) == texts(whole[cut:])


def test_workers_share_the_parts_of_a_stream_equally() -> None:
    assert [StreamState(8).workers(2, number) for number in (0, 1, 2, 3, 4, 9)] == [1, 1, 2, 2, 4, 4]
    with pytest.raises(ValueError, match="in 8 parts, which 3 processes cannot share equally"):
        StreamState(8).workers(3, 1)


def test_training_on_a_stream_logs_what_was_left_out(
    settings: Callable[..., TrainingConfig], caplog: pytest.LogCaptureFixture
) -> None:
    chats = records(3)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    config = settings(max_steps=3, max_seq_length=60, save_steps=1)
    recipe.train(config, lambda config: (StreamedSamples(chats), None))
    assert "3 samples of the stream had more than 60 text tokens and were skipped" in caplog.text
