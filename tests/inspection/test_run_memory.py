"""The memory that runs are predicted to take, and what was measured on two H200s."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from theworld.inspection import parameters
from theworld.inspection.memory import GIB
from theworld.inspection.parameters import count_parts
from theworld.inspection.run_memory import STRATEGIES, training_run
from theworld.model.configuration import TheWorldConfig
from theworld.model.published import published_gemma
from theworld.world_models.configuration import CosmosPredict2Config

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "training_strategies.jsonl"
TRAINED = {"projector": ("projector",), "all": ("projector", "vision", "language")}


@pytest.fixture(scope="module")
def config() -> TheWorldConfig:
    gemma = published_gemma("google/gemma-3-4b-it")
    assert gemma is not None
    return TheWorldConfig(vlm_config=gemma, world_config=CosmosPredict2Config())


@pytest.fixture(scope="module")
def counts(config: TheWorldConfig) -> dict[str, int]:
    return count_parts(config)


def test_parts_are_counted_once_for_a_config(config: TheWorldConfig, counts: dict[str, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "build_on_meta", lambda *_: pytest.fail("it was counted before"))
        assert count_parts(deepcopy(config)) == counts
    other = deepcopy(config)
    other.spatial_merge = 2 * config.spatial_merge
    assert count_parts(other) != counts, "a setting that changes the size of a part"


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in MEASURED.read_text().splitlines()]


@pytest.mark.parametrize(
    "row", rows(), ids=lambda r: f"{r['trained']}-{r['strategy']}-{r['processes']}-{r['use_gradient_checkpointing']}"
)
def test_predictions_are_within_a_tenth_of_what_was_measured(
    config: TheWorldConfig, counts: dict[str, int], row: dict[str, Any]
) -> None:
    predicted = training_run(
        config,
        counts,
        TRAINED[row["trained"]],
        num_world_steps=0,
        batch=row["batch_size"],
        strategy=row["strategy"],
        num_gpus=row["processes"],
        text_tokens=100,
        label_tokens=80,
        checkpointing=row["use_gradient_checkpointing"],
    )
    assert sum(predicted.persistent.values()) == pytest.approx(row["bytes_between_steps"], rel=0.05)
    assert predicted.peak == pytest.approx(row["peak_bytes"], rel=0.1)


def test_more_gpus_need_less_memory_each(config: TheWorldConfig, counts: dict[str, int]) -> None:
    peaks = {
        strategy: [
            training_run(
                config, counts, TRAINED["all"], num_world_steps=4, batch=1, strategy=strategy, num_gpus=n,
                checkpointing=True,
            ).peak
            for n in (2, 4, 8)
        ]
        for strategy in STRATEGIES
    }  # fmt: skip
    assert len(set(peaks["ddp"])) == 1
    assert all(peaks[name] == sorted(peaks[name], reverse=True) for name in ("fsdp2", "zero2", "zero3"))
    assert peaks["fsdp2"][2] < peaks["fsdp2"][0] - 15 * GIB
