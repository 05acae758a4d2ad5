"""Tiny base models, chats, and configs that train on them in a second or two."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_bases
from tests.world_models.tiny import TINY_SIZE
from theworld.training.config import TrainingConfig

Record = dict[str, Any]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def image(seed: int) -> np.ndarray:
    """A smooth random image (32, 32, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return coarse.repeat(TINY_SIZE // 4, axis=0).repeat(TINY_SIZE // 4, axis=1)


def records(count: int, first: int = 0) -> list[Record]:
    """Questions about random images, one turn each, with true future frames."""
    answers = ("left", "middle", "right")
    return [
        {
            "image": image(number),
            "text": "Which bin will the ball land in?",
            "label": answers[number % 3],
            "future_frames": [image(1000 * (number + 1) + frame) for frame in range(16)],
        }
        for number in range(first, first + count)
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 280.0) -> None:
    """Waits for an event. The limit is only for tests that have failed: busy cores delay events."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the event did not happen"
        time.sleep(0.02)


@pytest.fixture
def settings(bases: dict[str, str], tmp_path: Path) -> Callable[..., TrainingConfig]:
    """Makes configs of tiny runs."""
    return settings_in(tmp_path, bases)


def settings_in(folder: Path, bases: dict[str, str]) -> Callable[..., TrainingConfig]:
    """The same as the fixture, for runs that several tests share."""

    def make(**changes: Any) -> TrainingConfig:
        values: dict[str, Any] = {
            "model_name": bases["vlm_name_or_path"],
            "cosmos_model_name": bases["world_name_or_path"],
            "world_image_size": TINY_SIZE,
            "max_world_steps": 4,
            "mixed_precision": "fp32",
            "num_workers": 0,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "learning_rate": 1e-2,
            "max_steps": 2,
            "logging_steps": 1,
            "log_to_tensorboard": False,
            "output_dir": str(folder / "run"),
        }
        return TrainingConfig.from_dict({**values, **changes})

    return make


def load(train: int = 6, evaluation: int = 2) -> Callable[[TrainingConfig], tuple[list[Record], list[Record]]]:
    """A `load_datasets` with random images."""
    return lambda config: (records(train), records(evaluation, first=100))
