"""The runner on a tiny real model: arms really differ, batches do not matter, untrained projectors are refused."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.evaluation import runner
from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import ARMS, choose
from theworld.evaluation.run_folder import RunFolder
from theworld.evaluation.tasks import Item
from theworld.inference.pipeline import TheWorld
from theworld.media.video import Video

OF_FUSED = ("futures-8", "averaged-8", "gated")  # arms that may give the same words


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


def run(family: Path, items: list[Item], arms: str, **options: Any) -> dict[str, list[str]]:
    def load(weights: str | None) -> ModelAnswerer:
        loaded.append(weights)
        return ModelAnswerer(TheWorld.from_pretrained(family / (weights or "fused"), device="cpu"))

    loaded: list[str | None] = []
    options.setdefault("num_world_steps", 2)
    answers = runner.run_arms(items, choose(arms.split(",")), load, **options)
    assert len(loaded) == len(set(loaded))  # each model is loaded once
    for own in answers.values():
        assert [answer.id for answer in own] == [item.id for item in items]
    return {name: [answer.text for answer in own] for name, own in answers.items()}


def test_every_arm_answers_every_question_and_the_future_matters(family: Path, items: list[Item]) -> None:
    answers = run(family, items, ",".join(reversed(ARMS)))
    assert list(answers) == list(reversed(ARMS))
    assert {len(texts) for texts in answers.values()} == {len(items)}
    for arm, texts in answers.items():
        assert arm in ("fused", *OF_FUSED) or texts != answers["fused"], arm


def test_predictions_of_the_arms_provably_differ(family: Path, items: list[Item]) -> None:
    """Not in words, which two arms may share by chance, but in what the options of each answer weighed."""
    answers = runner.run_arms(items, ARMS, loader(family), num_world_steps=2)
    weights = {name: [answer.logprobs for answer in own] for name, own in answers.items()}
    assert all(logprobs is not None for own in weights.values() for logprobs in own)
    weights.pop("gated")  # it has the answers of fused and fused-0
    same = [pair for pair in combinations(weights, 2) if weights[pair[0]] == weights[pair[1]]]
    assert same == []


def loader(family: Path) -> Any:
    return lambda weights: ModelAnswerer(TheWorld.from_pretrained(family / (weights or "fused"), device="cpu"))


def test_what_the_store_knows_is_not_asked_again(family: Path, items: list[Item], tmp_path: Path) -> None:
    arms = choose(["fused", "no-world"])
    store = RunFolder(tmp_path / "run", {}, items)
    whole = runner.run_arms(items, arms, loader(family), num_world_steps=1, batch_size=2)
    store.add("fused", whole["fused"][:3])
    store.add("no-world", whole["no-world"])
    asked: list[str] = []
    remember = store.add
    store.add = lambda arm, answers: (asked.extend(answer.id for answer in answers), remember(arm, answers))  # type: ignore
    again = runner.run_arms(items, arms, loader(family), num_world_steps=1, batch_size=2, store=store)
    assert asked == [item.id for item in items[3:]]
    assert [answer.text for answer in again["fused"]] == [answer.text for answer in whole["fused"]]

    def never(weights: str | None) -> TheWorld:
        raise AssertionError("no model is needed where everything is known")

    assert runner.run_arms(items, arms, never, num_world_steps=1, store=store) == again


def test_several_numbers_of_world_steps_are_arms_of_their_own(family: Path, items: list[Item]) -> None:
    answers = run(family, items, "fused,no-world", num_world_steps=[0, 2])
    assert list(answers) == ["fused@0", "fused@2", "no-world"]
    assert answers["fused@2"] == run(family, items, "fused")["fused"]
    assert answers["fused@0"] == run(family, items, "fused-0")["fused-0"]


def test_costs_are_those_of_an_arm_alone(family: Path, items: list[Item]) -> None:
    answers = runner.run_arms(
        items, choose(["fused", "shuffled", "zero", "no-world"]), loader(family), num_world_steps=2
    )
    each = {name: [answer.rollouts for answer in own] for name, own in answers.items()}
    assert each == {"fused": [1.0] * 5, "shuffled": [1.0] * 5, "zero": [0.0] * 5, "no-world": [0.0] * 5}
    for own in answers.values():
        assert all(answer.seconds > 0 and answer.prompt_tokens > answer.new_tokens > 0 for answer in own)
    assert answers["shuffled"][0].rollout_seconds > 0  # fused made them, and shuffled would have had to
    assert answers["fused"][0].prompt_tokens > answers["no-world"][0].prompt_tokens


def test_finish_sees_the_model_under_test_and_all_answers(family: Path, items: list[Item]) -> None:
    seen: list[Any] = []
    arms = choose(["fused", "direct"])
    answers = runner.run_arms(
        items, arms, loader(family), num_world_steps=1, finish=lambda shared, given: seen.append((shared, given))
    )
    ((shared, given),) = seen
    assert given == answers
    assert shared.model.config.enable_world
    runner.run_arms(
        items, choose(["direct"]), loader(family), num_world_steps=1, finish=lambda *given: seen.append(given)
    )
    assert seen[1][0] is None


def test_several_images_and_a_image_that_cannot_be_read(family: Path, items: list[Item], tmp_path: Path) -> None:
    two = [replace(item, image=(item.image, items[number - 1].image)) for number, item in enumerate(items)]
    answers = run(family, two, "fused,shuffled,no-world,imagined-image", num_world_steps=1)
    assert answers["fused"] != run(family, items, "fused", num_world_steps=1)["fused"]
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = [*items[:2], replace(items[2], image=tmp_path / "broken.png")]
    store = RunFolder(tmp_path / "run", {}, broken)
    with pytest.raises(ValueError, match=r"^2: .*broken.png.* is not an image"):
        runner.run_arms(broken, choose(["no-world"]), loader(family), num_world_steps=0, batch_size=2, store=store)
    assert set(store.known("no-world")) == {"0", "1"}


@pytest.mark.parametrize("arms", ["oracle-future", "true-image", "shuffled"])
def test_an_error_about_a_damaged_file_names_the_question(
    family: Path, items: list[Item], arms: str, tmp_path: Path
) -> None:
    """The files of true futures, and of images that another question's arm reads."""
    (tmp_path / "vast.gif").write_bytes(b"GIF89a" + b"\xff" * 4 + bytes(3) + b"\x2c" + bytes(9) + b"\x02\x00\x3b")
    damaged = {"image": Video(tmp_path / "vast.gif")} if arms == "shuffled" else {"future": (tmp_path / "vast.gif",)}
    broken = [replace(item, now_form=None, frames=None, **damaged) for item in items[2:]]
    with pytest.raises(ValueError, match=rf"^{broken[0].id}: .*vast.gif' has (65535|more)"):
        runner.run_arms(broken, choose([arms]), loader(family), num_world_steps=1)


def test_an_arm_that_needs_the_base_gemma_is_refused_before_the_first_question(family: Path, items: list[Item]) -> None:
    model = ModelAnswerer(TheWorld.from_pretrained(family / "direct", device="cpu"))
    with pytest.raises(ValueError, match="gemma, verbal cannot use the base Gemma model"):
        runner.run_arms(items, choose(["no-world", "gemma", "verbal"]), lambda weights: model, num_world_steps=0)


def test_answers_do_not_depend_on_the_batch_size(family: Path, items: list[Item]) -> None:
    assert run(family, items, "fused,shuffled", batch_size=5) == run(family, items, "fused,shuffled", batch_size=2)


def test_one_progress_counts_the_missing_answers_of_all_arms(family: Path, items: list[Item], tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    store = RunFolder(tmp_path / "run", {}, items)
    store.add("fused", [runner.Answer(items[0].id, "left")])
    model = ModelAnswerer(TheWorld.from_pretrained(family / "fused", device="cpu"))
    runner.run_arms(
        items,
        choose(["fused", "no-world"]),
        lambda weights: model,
        num_world_steps=0,
        batch_size=2,
        progress=lambda *step: steps.append(step),
        store=store,
    )
    assert steps == [(runner.ANSWERING, done, 9) for done in (1, 3, 5, 7, 8, 9)]


def test_an_untrained_projector_is_refused(family: Path, items: list[Item]) -> None:
    model = ModelAnswerer(TheWorld.from_pretrained(family / "untrained", device="cpu"))
    with pytest.raises(ValueError, match=r"model is untrained.* leave out the arms that read them: fused\.$"):
        runner.run_arms(items, choose(["fused", "no-world"]), lambda weights: model, num_world_steps=0)
    answers = runner.run_arms(items[:2], choose(["no-world"]), lambda weights: model, num_world_steps=0)
    assert len(answers["no-world"]) == 2
