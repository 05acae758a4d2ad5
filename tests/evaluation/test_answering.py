"""Answers and their option scores: likelihoods are those of a forward pass, and shared work changes nothing."""

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_family import tiny_family
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.inference.option_scores import OptionScores, spellings_of
from theworld.inference.pipeline import TheWorld

QUESTIONS = ["Which bin will the ball land in?", "Is the red ball on the left? yes no"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TheWorld:
    return TheWorld.from_pretrained(tiny_family(tmp_path_factory.mktemp("models")) / "fused", device="cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def answerer(model: TheWorld) -> ModelAnswerer:
    return ModelAnswerer(model)


def weigh(model: TheWorld, logprobs: torch.Tensor, options: list[str]) -> list[float]:
    """What a forward pass says of the options: their first tokens in each spelling, (V,) to one an option."""
    ids = [{own[0] for own in forms} for forms in spellings_of(model.processor.tokenizer, options)]
    return [float(torch.logsumexp(logprobs[sorted(own)], 0)) for own in ids]


@pytest.mark.parametrize("enable_world", [True, False])
def test_a_reply_says_what_generate_says_and_how_likely_the_options_were(
    model: TheWorld, answerer: ModelAnswerer, images: list[np.ndarray], enable_world: bool
) -> None:
    options = [["left", "right", "middle"], ["yes", "no"]]
    settings = {"num_world_steps": 1, "enable_world": enable_world}
    replies = answerer.reply(images, QUESTIONS, options, 4, ReplyInputs(**settings))
    said = model.generate(images, QUESTIONS, max_new_tokens=4, **settings)
    assert [reply.text for reply in replies] == said
    for image, question, own, reply in zip(images, QUESTIONS, options, replies, strict=True):
        inputs = model.prepare(image, question, num_world_steps=1, enable_world=enable_world)
        with torch.no_grad():
            logprobs = model.model(**inputs).logits[0, -1].float().log_softmax(-1)
        assert reply.option_logprobs == pytest.approx(weigh(model, logprobs, own), abs=1e-4)
        assert reply.prompt_tokens == inputs["input_ids"].shape[1]
        assert 1 <= reply.num_tokens <= 4


def test_without_options_there_are_no_likelihoods(answerer: ModelAnswerer, images: list[np.ndarray]) -> None:
    assert [reply.option_logprobs for reply in answerer.reply(images, QUESTIONS, max_new_tokens=2)] == [None, None]


@pytest.mark.parametrize("enable_world", [True, False])
def test_a_given_answer_is_as_likely_as_its_tokens(
    model: TheWorld, answerer: ModelAnswerer, images: list[np.ndarray], enable_world: bool
) -> None:
    """Token by token, each behind what stands before it; answers of several lengths in one batch."""
    answers = ["left", "the middle, right"]
    settings = {"num_world_steps": 1, "enable_world": enable_world}
    found = answerer.answer_logprobs(images, QUESTIONS, answers, ReplyInputs(**settings))
    for image, question, answer, (logprob, _) in zip(images, QUESTIONS, answers, found, strict=True):
        ids = model.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        inputs = model.prepare(image, question, answer, **settings)
        start = inputs["input_ids"].shape[1] - len(ids) - 1  # the end of the turn follows the answer
        assert inputs["input_ids"][0, start:-1].tolist() == ids
        with torch.no_grad():
            logprobs = model.model(**inputs).logits[0].float().log_softmax(-1)
        alone = sum(float(logprobs[start - 1 + place, token]) for place, token in enumerate(ids))
        assert logprob == pytest.approx(alone, abs=1e-3)
    said = model.generate(images, QUESTIONS, max_new_tokens=2, **settings)
    others = [answer for answer, text in zip(answers, said, strict=True) if not text.startswith(answer)]
    assert others == answers, "these were chosen for not being what the model says"
    assert [greedy for _, greedy in found] == [False, False]
    seen, picked = zip(*(said_in_one_token(model, question, settings) for question in QUESTIONS), strict=True)
    greedy = [
        greedy for _, greedy in answerer.answer_logprobs(list(seen), QUESTIONS, list(picked), ReplyInputs(**settings))
    ]
    assert greedy == [True, True]


def said_in_one_token(model: TheWorld, question: str, settings: dict[str, Any]) -> tuple[np.ndarray, str]:
    """An image whose likeliest first token is text that becomes that token again; half of a character would not."""
    for seed in range(100):
        image = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        with torch.no_grad():
            token = model.model(**model.prepare(image, question, **settings)).logits[0, -1].argmax().item()
        text = model.processor.decode(token, skip_special_tokens=True)
        if model.processor.tokenizer(text, add_special_tokens=False)["input_ids"] == [token]:
            return image, text
    raise AssertionError("no image makes the model begin with a whole word")


def test_a_temperature_draws_and_zero_does_not(answerer: ModelAnswerer, images: list[np.ndarray]) -> None:
    def drawn(**sampling: float) -> set[str]:
        texts = set()
        for seed in range(4):
            torch.manual_seed(seed)
            texts.add(
                answerer.reply(
                    images[:1], QUESTIONS[:1], max_new_tokens=4, inputs=ReplyInputs(enable_world=False), **sampling
                )[0].text
            )
        return texts

    assert len(drawn(temperature=3.0)) > 1
    assert len(drawn(temperature=3.0, top_p=1e-6)) == len(drawn()) == 1


@pytest.mark.parametrize("enable_world", [True, False])
def test_image_features_made_once_give_the_same_answers(
    answerer: ModelAnswerer, images: list[np.ndarray], enable_world: bool
) -> None:
    features = answerer.image_features(images)
    options = [["left", "right"]] * 2
    settings = {"num_world_steps": 1, "enable_world": enable_world}
    plain = answerer.reply(images, QUESTIONS, options, 4, ReplyInputs(**settings))
    shared = answerer.reply(images, QUESTIONS, options, 4, ReplyInputs(image_features=features, **settings))
    assert [reply.text for reply in shared] == [reply.text for reply in plain]
    for one, other in zip(shared, plain, strict=True):
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-5)
    swapped = answerer.reply(images, QUESTIONS, options, 4, ReplyInputs(image_features=features.flip(0), **settings))
    assert swapped[0].option_logprobs != pytest.approx(plain[0].option_logprobs, abs=1e-4)


def test_world_tokens_are_read_in_place_of_the_projectors_own(
    model: TheWorld, answerer: ModelAnswerer, images: list[np.ndarray]
) -> None:
    latents = model.imagine(images, 2)
    options = [["left", "right"]] * 2

    def likelihoods(kind: str) -> list[tuple[float, ...] | None]:
        tokens = answerer.world_tokens(latents, kind)
        assert tokens.shape == (2, model.config.world_token_count(2), model.config.get_text_config().hidden_size)
        replies = answerer.reply(images, QUESTIONS, options, 1, ReplyInputs(world_latents=latents, world_tokens=tokens))
        return [reply.option_logprobs for reply in replies]

    own = answerer.reply(images, QUESTIONS, options, 1, ReplyInputs(world_latents=latents))
    assert likelihoods("trained")[0] == pytest.approx(own[0].option_logprobs, abs=1e-5)
    assert likelihoods("dummy") != likelihoods("trained") != likelihoods("random")
    with pytest.raises(ValueError, match="choose one of trained, random, dummy"):
        answerer.world_tokens(latents, "made-up")
    with pytest.raises(ValueError, match="need the world_latents"):
        answerer.reply(images, QUESTIONS, inputs=ReplyInputs(world_tokens=answerer.world_tokens(latents)))


def test_dummy_tokens_say_nothing_of_the_image_and_random_ones_do(model: TheWorld, answerer: ModelAnswerer) -> None:
    latents = torch.randn(2, model.config.world_config.latent_channels, 3, *model.config.world_grid())
    dummy = answerer.world_tokens(latents, "dummy")
    torch.testing.assert_close(dummy, answerer.world_tokens(2 * latents, "dummy"))
    inner = dummy[:, 1:-1]
    torch.testing.assert_close(inner, inner[:1, :1].expand_as(inner))
    boundaries = model.model.projector.boundaries
    torch.testing.assert_close(dummy[:, [0, -1]], boundaries.expand(2, 2, -1))
    state = torch.get_rng_state()
    random = answerer.world_tokens(latents, "random")
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(random, answerer.world_tokens(latents, "random"))
    assert not torch.allclose(random, answerer.world_tokens(latents, "random", seed=1))
    assert not torch.allclose(random[0], random[1])
    size = random[:, 1:-1].square().mean().sqrt()
    assert size == pytest.approx(model.model.text_embedding_rms(), rel=0.2)  # as large as text, so that it is read


def test_gemma_as_it_was_answers_without_the_lora(
    model: TheWorld, answerer: ModelAnswerer, images: list[np.ndarray]
) -> None:
    for name, parameter in model.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    options = [["left", "right"]] * 2
    with_lora, without = (
        [
            reply.option_logprobs
            for reply in answerer.reply(images, QUESTIONS, options, 1, ReplyInputs(enable_world=False, lora=lora))
        ]
        for lora in (True, False)
    )
    assert with_lora[0] != pytest.approx(without[0], abs=1e-4)
    inputs = model.prepare(images, QUESTIONS, enable_world=False)
    with torch.no_grad(), model.model.lora_disabled():
        logprobs = model.model.vlm(**inputs).logits[:, -1].log_softmax(-1)
    assert without[0] == pytest.approx(weigh(model, logprobs[0].float(), ["left", "right"]), abs=1e-4)


def test_the_lora_is_not_taken_from_answers_of_other_threads(model: TheWorld, images: list[np.ndarray]) -> None:
    """Answers with the LoRA wait until a context without it, of another thread, has ended; copies do not wait."""
    for name, parameter in model.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    inputs = model.prepare(images, QUESTIONS, enable_world=False)
    copied = copy.deepcopy(model.model)
    found: dict[str, torch.Tensor] = {}

    def answer(name: str, answers: torch.nn.Module) -> None:
        with torch.no_grad():
            found[name] = answers(**inputs).logits

    answer("alone", model.model)
    others = [threading.Thread(target=answer, args=args) for args in (("other", model.model), ("copy", copied))]
    with model.model.lora_disabled():
        for thread in others:
            thread.start()
        others[1].join()
        others[0].join(timeout=1)  # ends at once if the LoRA is not protected
        answer("without", model.model)
    others[0].join()
    assert not torch.equal(found["alone"], found["without"])
    torch.testing.assert_close(found["other"], found["alone"])
    torch.testing.assert_close(found["copy"], found["alone"])


def test_gemma_cannot_be_asked_where_it_was_trained(model: TheWorld, images: list[np.ndarray]) -> None:
    path = model.config._name_or_path.replace("fused", "direct")
    direct = ModelAnswerer(TheWorld.from_pretrained(path, device="cpu"))
    assert not direct.has_base_gemma
    with pytest.raises(ValueError, match="evaluate the base model itself"):
        direct.reply(images, QUESTIONS, inputs=ReplyInputs(lora=False))


def keeper(spellings: list[list[list[int]]], steps: list[list[float]]) -> OptionScores:
    found = OptionScores([spellings])
    for scores in steps:
        found(torch.zeros(1, 1, dtype=torch.long), torch.tensor([scores]))
    return found


def test_options_that_share_their_bracket_are_weighed_behind_it() -> None:
    # 0 is "(", 1 and 2 are the letters, 3 is something else
    options = [[[1], [0, 1]], [[2], [0, 2]]]
    first, second = [0.9, 0.1, 0.2, 0.0], [0.0, 0.7, 0.3, 0.0]
    bracket = keeper(options, [first, second]).logprobs(0, [0, 1])
    assert bracket is not None
    assert bracket[0] - bracket[1] == pytest.approx(0.4)  # of the second step
    letter = keeper(options, [first, second]).logprobs(0, [2, 3])
    assert letter is not None
    assert letter[0] - letter[1] == pytest.approx(-0.1)  # of the first: the answer opened with a letter
    other = keeper(options, [first, second]).logprobs(0, [3, 3])
    assert other == letter  # neither, and the letters stood at the first token all the same


def test_options_of_which_one_continues_the_other_have_no_likelihood_before_they_part() -> None:
    assert keeper([[[0]], [[0, 1]]], [[0.5, 0.5]]).logprobs(0, [0]) is None
    assert keeper([[[0]], [[0, 1]]], [[0.5, 0.5], [0.5, 0.5]]).logprobs(0, [1, 1]) is None
