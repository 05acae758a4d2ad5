"""The runner on a tiny real model: arms really differ, batches do not matter, untrained projectors are refused."""

from pathlib import Path

import numpy as np
import pytest

from theworld.api import TheWorld
from theworld.evaluation import runner
from theworld.evaluation.arms import ARMS, choose
from theworld.evaluation.items import Item


@pytest.fixture(scope="module")
def items() -> list[Item]:
    rng = np.random.default_rng(0)
    return [
        Item(
            id=str(number),
            family="drop" if number < 3 else "tower",
            topic="bin",
            form="free",
            image=(frames := rng.integers(0, 255, (17, 32, 32, 3), dtype=np.uint8))[0],
            question="Which bin will the ball land in?" + " left" * (number % 2),
            answer="left",
            legal=frozenset({"left", "right"}),
            now_form="Is the red ball on the left?",
            frames=frames,
        )
        for number in range(5)
    ]


def run(family: Path, items: list[Item], arms: str, **options: int) -> dict[str, list[str]]:
    def load(weights: str | None) -> TheWorld:
        loaded.append(weights)
        return TheWorld.from_pretrained(family / (weights or "fused"), device="cpu")

    loaded: list[str | None] = []
    answers = runner.run_arms(items, choose(arms.split(",")), load, num_world_steps=2, **options)
    assert len(loaded) == len(set(loaded))  # each model is loaded once
    return answers


def test_every_arm_answers_every_question_and_the_future_matters(family: Path, items: list[Item]) -> None:
    answers = run(family, items, ",".join(reversed(ARMS)))
    assert list(answers) == list(reversed(ARMS))
    assert {len(texts) for texts in answers.values()} == {len(items)}
    for arm in ("fused-0", "shuffled", "zero", "no-world", "imagined-image"):
        assert answers[arm] != answers["fused"], arm


def test_answers_do_not_depend_on_the_batch_size(family: Path, items: list[Item]) -> None:
    assert run(family, items, "fused,shuffled", batch_size=5) == run(family, items, "fused,shuffled", batch_size=2)


def test_progress_reaches_the_end_of_each_arm(family: Path, items: list[Item]) -> None:
    steps: list[tuple[str, int, int]] = []
    model = TheWorld.from_pretrained(family / "fused", device="cpu")
    runner.run_arms(
        items,
        choose(["fused", "no-world"]),
        lambda weights: model,
        num_world_steps=0,
        batch_size=2,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [(arm, done, 5) for arm in ("fused", "no-world") for done in (2, 4, 5)]


def test_an_untrained_projector_is_not_measured_silently(family: Path, items: list[Item]) -> None:
    model = TheWorld.from_pretrained(family / "untrained", device="cpu")
    with pytest.raises(ValueError, match="untrained, so fused would read noise; train it with `theworld train`"):
        runner.run_arms(items, choose(["fused", "no-world"]), lambda weights: model, num_world_steps=0)
    answers = runner.run_arms(items[:2], choose(["no-world"]), lambda weights: model, num_world_steps=0)
    assert len(answers["no-world"]) == 2
