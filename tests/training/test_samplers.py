"""Every sample once per epoch, in an order that depends on seed and epoch; streams leave out long samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.training.conftest import records
from theworld.datasets.samples import StreamedSamples
from theworld.training import recipe
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import describe
from theworld.training.samplers import EpochOrder, IndexedStream


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
    stream = iter(IndexedStream(StreamedSamples(chats), collator, 60))
    placed = [next(stream) for _ in range(4)]
    assert [each.index for each in placed] == [0, 1, 2, 3]
    assert [each.num_skipped for each in placed] == [0, 1, 0, 1]
    assert collator(placed[:2])["num_skipped"] == 1
    with pytest.raises(ValueError, match="no sample of at most 3 text tokens"):
        next(iter(IndexedStream(StreamedSamples(chats), collator, 3)))


def test_training_on_a_stream_logs_what_was_left_out(
    settings: Callable[..., TrainingConfig], caplog: pytest.LogCaptureFixture
) -> None:
    chats = records(3)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    config = settings(max_steps=3, max_seq_length=60, save_steps=1)
    recipe.train(config, lambda config: (StreamedSamples(chats), None))
    assert "3 samples of the stream had more than 60 text tokens and were skipped" in caplog.text
