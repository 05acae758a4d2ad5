"""Every sample once an epoch, in an order that seed and epoch decide; streams leave out what is too long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.training.conftest import records
from theworld.datasets.samples import StreamedSamples
from theworld.training import recipe
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import describe
from theworld.training.samplers import EpochOrder, IndexedStream


def test_an_epoch_is_a_shuffle_that_can_be_repeated() -> None:
    order = EpochOrder([None] * 10, 4, seed=3)
    first = list(order)
    assert sorted(first) == list(range(10)) != first
    assert list(order) == first == list(EpochOrder([None] * 10, 4, seed=3))
    order.set_epoch(2)
    later = list(order)
    assert sorted(later) == list(range(20, 30))  # no place is taken twice in a run
    assert [place - 20 for place in later] != first
    assert list(EpochOrder([None] * 10, 4, seed=4)) != first


def test_samples_that_look_differently_far_are_in_different_batches() -> None:
    groups = [None, 0, None, 0, None, 0, 0, None, None, 0, 2]
    order = EpochOrder(groups, 2, seed=0)
    batches = []
    for epoch in range(6):
        order.set_epoch(epoch)
        places = list(order)
        assert len(places) == len(order) == 8
        batches += [tuple(place % 11 for place in places[start : start + 2]) for start in range(0, 8, 2)]
    assert all(groups[a] == groups[b] for a, b in batches)
    used = {index for batch in batches for index in batch}
    assert used == set(range(10))  # whoever waits has its turn in another epoch; one alone makes no batch
    kinds = [groups[a] for a, _ in batches[:4]]
    assert kinds != sorted(kinds, key=str)
    with pytest.raises(ValueError, match="take a smaller batch_size"):
        EpochOrder([0, None], 2, seed=0)


def test_a_stream_goes_round_and_counts_what_it_leaves_out(settings: Callable[..., TrainingConfig]) -> None:
    config = settings()
    collator = recipe.new_collator(config, describe(config))
    chats = records(3)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    stream = iter(IndexedStream(StreamedSamples(chats), collator, 60))
    placed = [next(stream) for _ in range(4)]
    assert [each.index for each in placed] == [0, 1, 2, 3]
    assert [each.left_out for each in placed] == [0, 1, 0, 1]
    assert collator(placed[:2])["left_out"] == 1
    with pytest.raises(ValueError, match="no sample of at most 3 text tokens"):
        next(iter(IndexedStream(StreamedSamples(chats), collator, 3)))


def test_a_stream_trains_and_says_what_was_left_out(
    settings: Callable[..., TrainingConfig], caplog: pytest.LogCaptureFixture
) -> None:
    chats = records(3)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    config = settings(max_steps=3, max_seq_length=60, save_steps=1)
    recipe.train(config, lambda config: (StreamedSamples(chats), None))
    assert "3 samples of the stream had more than 60 text tokens and were left out" in caplog.text
