"""Claims about the options of `generate` and `stream`: both take the same ones, and transformers receives the rest."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.inference.options import GenerateOptions, RolloutOptions, generate_arguments, split_options

QUESTION = "Which bin will the ball land in?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TheWorld:
    bases = tiny_bases(tmp_path_factory.mktemp("bases"))
    return TheWorld(
        bases["vlm_name_or_path"],
        cosmos_model_name=bases["world_name_or_path"],
        max_world_steps=4,
        world_image_size=TINY_SIZE,
    )


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


def arguments_of(model: TheWorld, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """What transformers' `generate` receives from a call."""
    received: dict[str, Any] = {}
    generate = model.model.generate

    def spy(**arguments: Any) -> torch.Tensor:
        received.update(arguments)
        return generate(**arguments)

    monkeypatch.setattr(model.model, "generate", spy)
    model.generate(None, QUESTION, 2, enable_world=False, **options)
    monkeypatch.undo()
    return received


def test_the_typed_options_are_the_accepted_ones() -> None:
    hints = set(get_type_hints(GenerateOptions))
    rollout = {field.name for field in fields(RolloutOptions)}
    explicit = set(inspect.signature(TheWorld.generate).parameters)
    assert rollout <= hints | explicit, "each rollout option is a keyword of generate"
    assert hints <= rollout | generate_arguments()
    assert inspect.signature(TheWorld.stream).parameters.keys() == explicit


def test_options_of_transformers_reach_its_generate(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    received = arguments_of(model, monkeypatch, num_beams=2, repetition_penalty=1.5, no_repeat_ngram_size=2)
    assert received["num_beams"] == 2
    assert received["repetition_penalty"] == 1.5
    assert received["do_sample"] is False
    received = arguments_of(model, monkeypatch, temperature=0.7, top_p=0.5, top_k=3)
    assert (received["do_sample"], received["temperature"]) == (True, 0.7)
    assert (received["top_p"], received["top_k"]) == (0.5, 3)
    assert arguments_of(model, monkeypatch, do_sample=True, temperature=0.5)["temperature"] == 0.5


def test_do_sample_alone_samples_at_a_temperature_of_one(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers, whose default temperature is 1.0."""
    received = arguments_of(model, monkeypatch, do_sample=True, top_p=0.5)
    assert (received["do_sample"], received["top_p"]) == (True, 0.5)
    assert "temperature" not in received
    assert GenerationConfig(do_sample=True).temperature in (None, 1.0)
    config = GenerationConfig(do_sample=True, temperature=0.3)
    received = arguments_of(model, monkeypatch, temperature=0, generation_config=config)["generation_config"]
    assert not received.do_sample, "0 is greedy decoding, whatever the generation config says"


def test_options_change_the_answer_of_generate_and_stream_alike(model: TheWorld, image: np.ndarray) -> None:
    class OnlyYes(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            token = model.processor.tokenizer("yes", add_special_tokens=False)["input_ids"][0]
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)

    options: dict[str, Any] = {"max_new_tokens": 3, "num_world_steps": 0, "logits_processor": [OnlyYes()]}
    answer = model.generate(image, QUESTION, **options)
    assert answer.startswith("yes")
    assert "".join(model.stream(image, QUESTION, **options)).strip() == answer
    stopped = model.generate(image, QUESTION, **options, stop_strings=["yes"])
    assert stopped == "yes" != answer
    assert "".join(model.stream(image, QUESTION, **options, stop_strings=["yes"])).strip() == "yes"


def test_a_generation_config_holds_where_the_call_is_silent(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(do_sample=True, temperature=0.3, max_new_tokens=1)
    received = arguments_of(model, monkeypatch, generation_config=config)["generation_config"]
    assert (received.do_sample, received.temperature, received.max_new_tokens) == (True, 0.3, 2)
    assert config.max_new_tokens == 1, "the caller's object is not changed"
    answer = model.generate(None, QUESTION, enable_world=False, generation_config=GenerationConfig(max_new_tokens=2))
    assert answer == model.generate(None, QUESTION, 2, enable_world=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_pp": 0.5}, "no option 'top_pp'; did you mean 'top_p'"),
        ({"world_step": 1}, "no option 'world_step'; did you mean 'num_world_steps'"),
        ({"number_of_beams": 1}, "no option 'number_of_beams'; did you mean 'num_beams'"),
        ({"qqq": 1}, "no option 'qqq'; see RolloutOptions"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is not supported; call model.model.generate"),
        ({"num_return_sequences": 2}, "num_return_sequences is not supported; repeat the question"),
        ({"max_length": 5}, "max_length is not supported; use max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; it must be an integer"),
        ({"max_new_tokens": None}, "max_new_tokens is None; it must be an integer"),
        ({"seed": "a"}, "seed is 'a'; it must be an integer"),
        ({"seed": True}, "seed is True; it must be an integer"),
        ({"seed": 0.5}, "seed is 0.5; it must be an integer"),
        ({"enable_world": "no"}, "enable_world is 'no'"),
        ({"mode": "video"}, "mode is 'video'"),
        ({"world_images": "last"}, "world_images is 'last'"),
        ({"num_world_steps": 1.5}, "num_world_steps is 1.5"),
        ({"num_world_steps": 5}, "num_world_steps is 5"),
        ({"temperature": "a"}, "temperature is 'a'"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1; it must be 0 or more"),
        ({"num_beams": 0}, "num_beams is 0; it must be 1 or more"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0; it must be above 0"),
        ({"temperature": 1.0, "do_sample": False}, "temperature is 1.0 and do_sample is False"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0 and do_sample is True; leave one of them out"),
        ({"top_p": 0.5}, "top_p has no effect with greedy decoding; set temperature > 0"),
        ({"top_k": 5, "temperature": 0.0}, "top_k has no effect with greedy decoding"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"stop_strings": []}, r"stop_strings is \[\]; pass a text that is not empty"),
        ({"stop_strings": 5}, "stop_strings is 5; pass a text"),
        ({"stop_strings": ["."] * 2 + [""]}, "stop_strings is .*; pass a text that is not empty"),
        ({"bad_words_ids": []}, r"bad_words_ids is \[\], which transformers refuses"),
        ({"suppress_tokens": "a"}, "suppress_tokens is 'a', which transformers refuses"),
        ({"sequence_bias": 3}, "sequence_bias is 3, which transformers refuses"),
        ({"temperature": 1.0, "top_h": 7}, "top_h is 7, which transformers refuses"),
    ],
)
def test_a_wrong_option_fails_before_anything_is_imagined(
    model: TheWorld, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(model.model, "world_latents_of", lambda *_, **__: pytest.fail("imagined"))
    for call in (model.generate, lambda *a, **k: next(model.stream(*a, **k))):
        with pytest.raises(ValueError, match=message) as caught:
            call(image, QUESTION, **{"num_world_steps": 1, "mode": "tokens", **wrong})
        assert "\n" not in str(caught.value)


def test_what_cannot_be_streamed_is_an_error(model: TheWorld, image: np.ndarray) -> None:
    for options in ({"num_beams": 2}, {"generation_config": GenerationConfig(num_beams=2)}):
        with pytest.raises(ValueError, match="num_beams is 2, and beam search cannot be streamed"):
            model.stream(image, QUESTION, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stream makes its own streamer"):
        model.stream(image, QUESTION, streamer=object())


def test_an_empty_list_of_images_is_an_error(model: TheWorld) -> None:
    for call in (model.generate, model.prepare, model.forward):
        for empty in ([], ()):
            with pytest.raises(ValueError, match="image is an empty list; pass one or more images, or None"):
                call(empty, QUESTION)


def test_asking_without_an_image_warns_once_unless_it_is_said(
    model: TheWorld, image: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    answer = model.generate(None, QUESTION, 2, enable_world=False)
    assert "No image" not in caplog.text
    for _ in range(2):
        assert model.generate(None, QUESTION, 2) == answer
    assert caplog.text.count("No image was given") == 1
    model._warned.clear()
    model.generate([image, None], [QUESTION] * 2, 2, num_world_steps=0)
    assert caplog.text.count("No image was given") == 2, "one of two questions has no image"
    model._warned.clear()
    model.forward(None, QUESTION)
    assert caplog.text.count("No image was given") == 3


def test_an_empty_question_is_an_error(model: TheWorld, image: np.ndarray) -> None:
    for question in ("", [QUESTION, " "]):
        with pytest.raises(ValueError, match="question is an empty text"):
            model.generate([image] * (1 if question == "" else 2), question)


@pytest.mark.parametrize("wrong", [{"seed": "a"}, {"enable_world": "no"}])
def test_the_processor_checks_its_values(model: TheWorld, image: np.ndarray, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is '"):
        model.processor(images=image, text="<start_of_image>What?", **wrong)


@pytest.mark.parametrize(("name", "ours"), [("steps", "num_world_steps"), ("max_tokens", "max_new_tokens")])
def test_names_of_other_interfaces_are_understood(name: str, ours: str) -> None:
    with pytest.raises(ValueError, match=f"has no option '{name}'; did you mean '{ours}'"):
        split_options({name: 4}, None, None)
