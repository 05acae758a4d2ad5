"""A benchmark and a model whose answers are planted, so that every figure that comes out is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from theworld.evaluation.answering import ReplyInputs
from theworld.evaluation.arms import choose
from theworld.evaluation.run_folder import RunFolder
from theworld.evaluation.runner import Answer, run_arms
from theworld.evaluation.tasks import Item, Request, load_benchmark
from theworld.inference.scored_answers import Reply

TASKS = ("near", "far")


def planted_benchmark(folder: Path, n: int = 40) -> list[Item]:
    """n questions of two choices in two tasks, the right one always (A), as JSON Lines in `folder`."""
    rows = []
    for number in range(n):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"q{number}",
                "image": f"{number}.png",
                "question": f"Which of the two is it, {number}?",
                "choices": ["the cup", "the box"],
                "answer": "A",
                "task": TASKS[number % 2],
            }
        )
    (folder / "planted.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return load_benchmark("mcq", Request(data=str(folder / "planted.jsonl")))


class PlantedModel:
    """Answers what `says` plants for a question's number, world on or off; its likelihoods always favour (B)."""

    projector_is_trained = has_base_gemma = True
    passes_per_rollout = 3
    config = SimpleNamespace(world_images="first", enable_world=False, world_config=SimpleNamespace(temporal_factor=4))

    def __init__(self, says: Callable[[int, bool], str]) -> None:
        self.says = says
        self.asked = 0

    def imagine(
        self, images: Sequence[Any], num_world_steps: int, *, seed: int = 0, present: Any = None
    ) -> torch.Tensor:
        return torch.zeros(len(images), 1, 1 + num_world_steps, 2, 2)

    def image_features(self, images: Sequence[Any]) -> torch.Tensor:
        return torch.zeros(len(images), 1, 1)

    def reply(
        self,
        images: Any,
        questions: Sequence[str],
        options: Any,
        max_new_tokens: int,
        inputs: ReplyInputs,
        **sampling: Any,
    ) -> list[Reply]:
        self.asked += len(questions)
        numbers = [int(text.split(",")[1].split("?")[0]) for text in questions]
        return [Reply(self.says(number, bool(inputs.enable_world)), 2, 10, (-1.0, -0.5)) for number in numbers]


def planted_run(
    folder: Path, items: list[Item], says: Callable[[int, bool], str], arms: str = "fused,no-world", **settings: Any
) -> dict[str, list[Answer]]:
    """A run of the planted benchmark into `folder`."""
    given = {"benchmark": "mcq", "model": "planted", "steps": 1, "seed": 0, **settings}
    model: Any = PlantedModel(says)
    with RunFolder(folder, given, items) as store:
        return run_arms(
            items, choose(arms.split(",")), lambda weights: model, num_world_steps=1, batch_size=8, store=store
        )
