"""Several futures: the same as one by one, combined as documented; and a gate that imagines only when it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.inference.futures import FutureAnswers, combine, normalise
from theworld.inference.scored_answers import Reply, generate_scored
from theworld.model.gate import Gate, gate_settings, jumps

QUESTION = "Which bin will the ball land in?"
OPTIONS = ["left", "middle", "right"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TheWorld:
    bases = tiny_bases(tmp_path_factory.mktemp("bases"))
    built = TheWorld(
        bases["vlm_name_or_path"],
        cosmos_model_name=bases["world_name_or_path"],
        num_world_steps=1,
        max_world_steps=2,
        world_image_size=TINY_SIZE,
        reads_world_tokens=True,
        device="cpu",
    )
    with torch.no_grad():  # futures differ, as those of a trained model
        for parameter in built.model.projector.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return built


@pytest.fixture
def gate(model: TheWorld) -> Iterator[Callable[..., None]]:
    """Sets the model's gate for one test."""
    yield lambda **values: setattr(model.config, "gate", gate_settings(values))
    model.config.gate = None


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


def ask(model: TheWorld, **options: Any) -> FutureAnswers:
    return model.ask(image(), QUESTION, max_new_tokens=4, **options)


def counted(monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module) -> list[int]:
    """The batch sizes of a module's calls from now on."""
    sizes: list[int] = []
    forward = module.forward

    def counting(*inputs: Any, **named: Any) -> Any:
        sizes.append(len((inputs or tuple(named.values()))[0]))
        return forward(*inputs, **named)

    monkeypatch.setattr(module, "forward", counting)
    return sizes


def test_likelihoods_are_normalised_before_they_are_averaged() -> None:
    replies = [
        Reply("left", 2, 9, (np.log(0.3), np.log(0.1))),  # 0.75 and 0.25
        Reply("right", 2, 9, (np.log(0.2), np.log(0.2) + 1e-9)),  # 0.5 each, the second one by a hair
        Reply("I do not know", 4, 9, None),
    ]
    found = combine(replies, ["left", "right"])
    assert found.answer == "left"
    assert found.probabilities == pytest.approx({"left": 0.625, "right": 0.375})
    assert found.spread == pytest.approx({"left": 0.125, "right": 0.125})
    assert found.shares == pytest.approx({"left": 1 / 3, "right": 1 / 3, "I do not know": 1 / 3})
    assert (found.undecided, found.num_futures, found.agreement) == (1, 3, pytest.approx(1 / 3))
    assert found.answers == ("left", "right", "I do not know")


def test_free_answers_are_grouped_with_their_shares() -> None:
    found = combine([Reply(text, 1, 1) for text in ("Red.", "blue", "red", "(red)")])
    assert (found.answer, dict(found.shares)) == ("Red.", {"Red.": 0.75, "blue": 0.25})
    assert (found.probabilities, found.undecided, str(found)) == ({}, 0, "Red.")
    assert combine([Reply("a", 1, 1), Reply("b", 1, 1)]).answer == "a", "the first of equals"
    assert combine([Reply("perhaps", 1, 1)], OPTIONS).answer == "perhaps", "no answer decides between the options"
    assert normalise(" (B). ") == "b"


def test_futures_are_the_rollouts_of_consecutive_seeds(model: TheWorld) -> None:
    images = [image(0), image(1)]
    together = model.imagine(images, 2, seed=3, futures=3)
    alone = torch.cat([model.imagine(images, 2, seed=seed) for seed in (3, 4, 5)])
    torch.testing.assert_close(together, alone)
    assert not torch.equal(together[0], together[2]), "another seed, another future"
    torch.testing.assert_close(together[0, :, 0], together[2, :, 0])  # of the same present


def test_several_futures_are_one_batch_and_the_image_is_seen_once(
    model: TheWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = model.model.world
    assert world is not None
    model.runner.load_parts("transformer")
    encoded = counted(monkeypatch, world.vae.encoder)  # type: ignore[attr-defined]
    denoised = counted(monkeypatch, world.transformer)  # type: ignore[attr-defined]
    seen = counted(monkeypatch, model.model.vlm.model.vision_tower)
    ask(model, futures=3)
    assert set(encoded) == {1}
    assert set(denoised) == {2 * 3}, "each guided pass has all three"
    assert seen == [1], "Gemma sees the image once"


def test_probabilities_are_the_means_over_the_futures(model: TheWorld) -> None:
    found = ask(model, futures=3, options=OPTIONS, seed=5)
    alone = [ask(model, options=OPTIONS, seed=5 + number) for number in range(3)]
    for option in OPTIONS:
        values = [one.probabilities[option] for one in alone]
        assert found.probabilities[option] == pytest.approx(np.mean(values), abs=1e-4)
        assert found.spread[option] == pytest.approx(np.std(values), abs=1e-4)
    assert found.answers == tuple(one.answers[0] for one in alone)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert max(found.spread.values()) > 1e-4, "the futures of this model differ"
    assert json.loads(json.dumps(found.as_json()))["probabilities"] == found.probabilities


def test_one_future_is_that_of_generate(model: TheWorld) -> None:
    found = ask(model, seed=2)
    assert found.answer == model.generate(image(), QUESTION, max_new_tokens=4, seed=2)
    assert (found.num_futures, found.gate, found.agreement) == (1, None, 1.0)
    assert ask(model, num_world_steps=0).num_futures == 0


def test_frames_are_shown_of_each_future(model: TheWorld) -> None:
    found = ask(model, futures=2, mode="frames")
    alone = [model.generate(image(), QUESTION, max_new_tokens=4, mode="frames", seed=seed) for seed in (0, 1)]
    assert list(found.answers) == alone


def test_confidence_is_the_probability_of_the_least_certain_token(model: TheWorld) -> None:
    inputs = model.prepare(image(), QUESTION, num_world_steps=0)
    (reply,) = generate_scored(model, inputs, max_new_tokens=4)
    out = model.model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    best = [float(scores.float().softmax(-1).max()) for scores in out.scores]
    assert reply.confidence == pytest.approx(min(best[: reply.num_tokens]))
    assert generate_scored(model, inputs, max_new_tokens=1)[0].confidence == pytest.approx(best[0])


def test_a_confident_answer_needs_no_rollout(
    model: TheWorld, gate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate(min_confidence=0.0)
    monkeypatch.setattr(model.runner, "imagine_futures", lambda *_: pytest.fail("nothing is imagined"))
    found = ask(model, imagine="auto", futures=4)
    assert found.answer == model.generate(image(), QUESTION, max_new_tokens=4, num_world_steps=0)
    assert found.gate is not None
    assert (found.num_futures, found.gate.imagined, found.gate.kept) == (0, 0, 0)


def test_an_unsure_answer_is_replaced_by_those_from_futures_that_fit_the_present(
    model: TheWorld, gate: Callable[..., None]
) -> None:
    gate(min_confidence=1.0)
    found = ask(model, imagine="auto", futures=3, options=OPTIONS)
    plain = ask(model, futures=3, options=OPTIONS)
    assert found.gate is not None
    assert replace(found, gate=None) == plain
    assert (found.gate.imagined, found.gate.kept) == (3, 3)
    distances = jumps(model.imagine(image(), 1, futures=3), 1)
    gate(min_confidence=1.0, max_jump=float(distances.sort().values[:2].mean()))  # one of the three is below
    some = ask(model, imagine="auto", futures=3, options=OPTIONS)
    assert some.gate is not None
    assert (some.num_futures, some.gate.kept) == (1, 1)
    assert some.probabilities == pytest.approx(
        ask(model, seed=int(distances.argmin()), options=OPTIONS).probabilities, abs=1e-4
    )
    gate(min_confidence=1.0, max_jump=1e-6)
    none = ask(model, imagine="auto", futures=3, options=OPTIONS)
    assert none.gate is not None
    assert (none.num_futures, none.gate.imagined, none.gate.kept) == (0, 3, 0)
    assert none.probabilities == pytest.approx(ask(model, num_world_steps=0, options=OPTIONS).probabilities, abs=1e-6)


def test_a_jump_is_the_median_change_of_the_cells() -> None:
    latents = torch.zeros(2, 2, 4, 1, 3)  # one past frame, now, two imagined ones
    latents[0, :, 2] = torch.tensor([1.0, 2.0, 50.0])  # both channels of the three cells
    latents[1, 0, 2] = 2.0  # one of two channels: 2 / √2
    torch.testing.assert_close(jumps(latents, 2), torch.tensor([2.0, 2.0**0.5]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"futures": 0}, "futures is 0; it must be between 1 and 64"),
        ({"futures": 65}, "between 1 and 64"),
        ({"futures": 2.5}, "futures is 2.5; it must be an integer"),
        ({"imagine": "sometimes"}, "choose one of always, auto"),
        ({"futures": 2, "num_world_steps": 0}, "2 futures were requested, and this call imagines nothing"),
        ({"imagine": "auto", "enable_world": False}, "imagine='auto' was requested, and this call imagines nothing"),
        ({"options": "left"}, "pass a list of texts"),
        ({"options": ["left"]}, "two or more different texts"),
        ({"options": ["left", "Left."]}, "two or more different texts"),
        ({"world_latents": torch.zeros(1)}, "pass them to generate"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_imagined(
    model: TheWorld, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(model.model, "generate", lambda *_, **__: pytest.fail("the model is not asked"))
    with pytest.raises(ValueError, match=message):
        ask(model, **options)


def test_one_question_at_a_time(model: TheWorld) -> None:
    with pytest.raises(ValueError, match="ask answers one question"):
        model.ask([image()], [QUESTION])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 futures were requested"):
        model.ask(None, QUESTION, futures=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_confidence": 1.5}, "min_confidence of the gate is 1.5; give a number from 0 to 1"),
        ({"max_jump": 0}, "give a number above 0, or null"),
        ({"threshold": 0.9}, "gate has a key 'threshold'"),
        ("on", "gate is 'on'; give an object"),
    ],
    ids=str,
)
def test_a_wrong_gate_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_settings(values)


def test_the_gate_of_a_configuration_is_complete() -> None:
    assert gate_settings({"min_confidence": 0.8}) == {"min_confidence": 0.8, "max_jump": None}
    assert gate_settings(Gate(0.5, 2.0)) == {"min_confidence": 0.5, "max_jump": 2.0}
    assert not Gate().is_sure(None)
    assert Gate(0.5).is_sure(0.5)
    assert not Gate(0.5, 1.0).keeps(None)
