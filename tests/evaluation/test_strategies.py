"""Arms that ask several times: their answers are those of single runs, and their costs are what they used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.evaluation import runner
from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import ARMS, arm_named, choose
from theworld.evaluation.run_folder import arm_order
from theworld.evaluation.runner import Answer
from theworld.evaluation.strategies import of_futures
from theworld.evaluation.tasks import Item
from theworld.inference.futures import normalised
from theworld.inference.pipeline import TheWorld
from theworld.model.gate import Gate


@pytest.fixture(scope="module")
def items() -> list[Item]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    legal = frozenset({"left", "right"})
    return [Item(str(row), "drop", "bin", "free", frames[row], f"Which bin, {row}?", "left", legal) for row in range(4)]


@pytest.fixture(scope="module")
def model(family: Path) -> ModelAnswerer:
    return ModelAnswerer(TheWorld.from_pretrained(family / "fused", device="cpu"))


def run(model: ModelAnswerer, items: list[Item], arms: str, **options: Any) -> dict[str, list[Answer]]:
    return runner.run_arms(items, choose(arms.split(",")), lambda _: model, num_world_steps=1, **options)


def test_futures_average_the_answers_of_single_seeds(model: ModelAnswerer, items: list[Item]) -> None:
    together = run(model, items, "futures-3", seed=2, batch_size=3)["futures-3"]
    alone = [run(model, items, "fused", seed=seed)["fused"] for seed in (2, 3, 4)]
    for row, answer in enumerate(together):
        probabilities = np.array([normalised(one[row].logprobs or ()) for one in alone])  # (futures, options)
        assert answer.logprobs is not None
        np.testing.assert_allclose(np.exp(answer.logprobs), probabilities.mean(axis=0), atol=1e-4)
        assert answer.text == items[row].options[probabilities.mean(axis=0).argmax()]
        best = probabilities.mean(axis=0).argmax()
        assert answer.agreement == pytest.approx((probabilities.argmax(axis=1) == best).mean())
        assert answer.spread == pytest.approx(probabilities[:, best].std(), abs=1e-4)
        assert answer.rollouts == 3
        assert answer.passes == 3 * model.passes_per_rollout
        assert answer.prompt_tokens == sum(one[row].prompt_tokens for one in alone)


def test_the_average_of_the_latents_is_read_once(model: ModelAnswerer, items: list[Item]) -> None:
    batches = []
    reply = model.reply

    def listening(*inputs: Any, **named: Any) -> Any:
        batches.append(inputs[4].world_latents)
        return reply(*inputs, **named)

    model.reply = listening  # type: ignore[method-assign]
    try:
        answers = run(model, items, "averaged-2,fused")
        run(model, items, "fused", seed=1)
    finally:
        del model.reply  # type: ignore[method-assign]
    averaged, first, second = batches
    np.testing.assert_allclose(averaged, (first + second) / 2, atol=1e-5)
    assert {one.rollouts for one in answers["averaged-2"]} == {2}
    assert {one.rollouts for one in answers["fused"]} == {1}


def test_gated_answers_are_those_of_one_of_its_two_arms(model: ModelAnswerer, items: list[Item]) -> None:
    plain = run(model, items, "fused,fused-0")
    confidences = sorted(one.confidence or 0.0 for one in plain["fused-0"])
    model.gate = Gate(min_confidence=(confidences[1] + confidences[2]) / 2)
    try:
        gated = run(model, items, "gated")["gated"]
        model.gate = Gate(min_confidence=1.0, max_jump=1e-6)
        refused = run(model, items, "gated")["gated"]
    finally:
        model.gate = Gate()
    for row, answer in enumerate(gated):
        sure = (plain["fused-0"][row].confidence or 0.0) > confidences[1]
        chosen = plain["fused-0" if sure else "fused"][row]
        assert (answer.text, answer.rollouts) == (chosen.text, 0 if sure else 1)
        assert answer.logprobs == pytest.approx(chosen.logprobs, abs=1e-4)
    assert [one.text for one in refused] == [one.text for one in plain["fused-0"]]
    assert {one.rollouts for one in refused} == {1}, "what was imagined and refused has its cost"


def test_label_likelihoods_are_averaged_over_futures() -> None:
    answers = [Answer("0", "a", label_logprob=float(np.log(p)), label_tokens=3) for p in (0.2, 0.6)]
    assert of_futures(answers, ()).label_logprob == pytest.approx(np.log(0.4))
    assert of_futures(answers, ()).label_tokens == 3


def test_the_number_of_futures_is_part_of_the_name() -> None:
    assert choose(["futures-3", "averaged-12"])["futures-3"].meaning.endswith("from 3 imagined futures")
    for name in ("futures-1", "futures-65", "averaged-0"):
        with pytest.raises(ValueError, match="choose from 2 to 64"):
            arm_named(name)
    with pytest.raises(ValueError, match="There is no arm 'futures-x'"):
        arm_named("futures-x")
    names = ["gated", "futures-8", "futures-16", "fused-0", "futures-2@4", "averaged-8"]
    assert sorted(names, key=arm_order) == ["fused-0", "futures-2@4", "futures-8", "futures-16", "averaged-8", "gated"]
    assert set(choose(["all"])) == set(ARMS)
