"""A person's words from the façade and the command line to the rollout, and what is refused on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from tests.tiny import TINY_SIZE, tiny_bases, tiny_gemma_folder
from tests.world_models.guardrail_stand_in import guardrail_calls, guardrail_installed
from tests.world_models.tiny import tiny_published_folder
from theworld import TheWorld
from theworld.cli import app
from theworld.model.processing import content_seed
from theworld.world_models import prompts

QUESTION = "Which bin will the ball land in?"
CUP = "the cup is pushed to the left"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    tiny_gemma_folder(folder / "gemma")
    tiny_published_folder(folder / "cosmos")
    return folder


@pytest.fixture(autouse=True)
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with guardrail_installed(tmp_path / "site", monkeypatch):
        yield


def build(folder: Path, **arguments: object) -> TheWorld:
    values = {"num_world_steps": 2, "max_world_steps": 4, "world_image_size": TINY_SIZE, "device": "cpu", **arguments}
    return TheWorld(folder / "gemma", cosmos_model_name=str(folder / "cosmos"), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> TheWorld:
    return build(bases)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_without_a_prompt_seeds_are_what_they_always_were(model: TheWorld) -> None:
    """A golden: cached latents and published numbers hang on it."""
    assert content_seed(np.zeros((1, 2, 2, 3), np.uint8)) == 496207139758344636
    frames = pixels()[None]
    for prompt in (None, "", "  "):
        inputs = model.processor.world_inputs([Image.fromarray(pixels())], 1, 3, prompt)
        assert inputs["world_seeds"].tolist() == [content_seed(frames, "", 3)]
        assert "world_prompt" not in inputs


def test_a_prompt_is_part_of_the_seed(model: TheWorld) -> None:
    def seeds(prompt: object) -> list[int]:
        return model.prepare([pixels(), pixels()], [QUESTION, "yes"], world_prompt=prompt)["world_seeds"].tolist()

    plain, cup = seeds(None)[0], content_seed(pixels()[None], CUP)
    assert seeds(CUP) == seeds([f" {CUP} ", CUP]) == [cup, cup]
    assert seeds(["", CUP]) == seeds([None, CUP]) == [plain, cup]
    assert plain != cup


def test_a_prompt_for_each_image_of_each_question(bases: Path) -> None:
    model = build(bases, world_images="all")
    images = [[pixels(0), pixels(1)], [pixels(2)]]
    inputs = model.prepare(images, [QUESTION, "yes"], world_prompt=["left", "right"])
    assert inputs["world_prompt"] == ["left", "left", "right"]
    with pytest.raises(ValueError, match="Got 3 world prompts for 2"):
        model.prepare(images, [QUESTION, "yes"], world_prompt=["left", "right", "left"])


# -- the façade -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
def test_a_prompt_steers_every_call(model: TheWorld) -> None:
    plain, cup = model.imagine(pixels()), model.imagine(pixels(), world_prompt=CUP)
    assert torch.equal(plain[:, :, :1], cup[:, :, :1]), "now is now"
    assert (plain - cup)[:, :, 1:].abs().max() > 1e-3
    # more than another seed: the same noise under another prompt
    frames = model.prepare(pixels(), QUESTION)["world_frames"]
    same_noise = [model.model.world_latents_of(frames, 2, [5], world_prompt=prompt) for prompt in (None, CUP)]
    assert (same_noise[0] - same_noise[1])[:, :, 1:].abs().max() > 1e-3

    logits = model.forward(pixels(), QUESTION, world_prompt=CUP).logits
    read = model.model(**_reading(model, cup)).logits
    torch.testing.assert_close(logits, read, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, model.forward(pixels(), QUESTION).logits, atol=1e-4)

    for mode in ("tokens", "frames"):
        answer = model.generate(pixels(), QUESTION, 5, world_prompt=CUP, mode=mode)
        assert answer == model.generate(pixels(), QUESTION, 5, world_latents=cup, mode=mode)
        assert "".join(model.stream(pixels(), QUESTION, 5, world_prompt=CUP, mode=mode)).strip() == answer
    assert not any(isinstance(call, tuple) for call in guardrail_calls()), "no person saw the frames"


def _reading(model: TheWorld, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs = dict(model.prepare(pixels(), QUESTION))
    for name in ("world_frames", "world_seeds", "num_world_steps"):
        del inputs[name]
    return {**inputs, "world_latents": latents}


@pytest.mark.usefixtures("checked")
def test_the_processor_and_model_alone_do_the_same(model: TheWorld) -> None:
    inputs = model.prepare(pixels(), QUESTION, world_prompt=CUP)
    ids = model.model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    text = model.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert text == model.generate(pixels(), QUESTION, 5, world_prompt=CUP, mode="tokens")


@pytest.mark.usefixtures("checked")
def test_prompts_of_a_batch_are_their_own(model: TheWorld) -> None:
    images, steering = [pixels(0), pixels(0), pixels(1)], ["", CUP, CUP]
    together = model.imagine(images, world_prompt=steering)
    alone = [model.imagine(p, world_prompt=prompt) for p, prompt in zip(images, steering, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert model.generate(images, [QUESTION] * 3, 4, world_prompt=steering) == [
        model.generate(p, QUESTION, 4, world_prompt=prompt) for p, prompt in zip(images, steering, strict=True)
    ]


@pytest.mark.usefixtures("checked")
def test_the_guardrail_leaves_training_possible(bases: Path) -> None:
    """Importing it switches autograd off; a loss after it must still have gradients."""
    model = build(bases)
    loss = model.forward(pixels(), QUESTION, labels="left", world_prompt=CUP).loss
    assert CUP in guardrail_calls()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.usefixtures("checked")
def test_the_guardrail_is_left_alone_where_there_is_nothing_to_check(model: TheWorld) -> None:
    latents = model.imagine(pixels())
    model.generate(pixels(), QUESTION, 3)
    model.decode(latents, check_guardrail=False)
    assert guardrail_calls() == []
    model.decode(latents)
    assert guardrail_calls() == ["loaded", "cpu", (9, TINY_SIZE, TINY_SIZE, 3), "cpu"]
    with pytest.raises(ValueError, match="refuses the world prompt 'a weapon'"):
        model.imagine(pixels(), world_prompt="a weapon")


@pytest.mark.usefixtures("checked")
def test_people_see_what_the_guardrail_gives(model: TheWorld) -> None:
    latents = torch.zeros(1, 4, 2, 4, 4)
    assert np.array_equal(model.decode(latents), model.decode(latents, check_guardrail=False) // 2)


def test_without_the_guardrail_it_is_said_before_the_work(model: TheWorld) -> None:
    latents = model.imagine(pixels())
    for call in (
        lambda: model.decode(latents),
        lambda: model.imagine(pixels(), world_prompt=CUP),
        lambda: model.generate(pixels(), QUESTION, world_prompt=CUP),
    ):
        with pytest.raises(ValueError, match=r"uv pip install --python .* cosmos_guardrail"):
            call()
    assert model.decode(latents, check_guardrail=False).shape == (1, 9, TINY_SIZE, TINY_SIZE, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_world_steps": 0}, "world_prompt has no effect without imagined steps"),
        ({"enable_world": False}, "leave it out|leave the prompt out"),
        ({"image": None}, "leave it out|leave the prompt out"),
        ({"world_latents": torch.zeros(1, 4, 3, 4, 4)}, "world_prompt"),
    ],
)
def test_a_prompt_that_could_steer_nothing_is_refused(
    model: TheWorld, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**{"image": pixels(), "question": QUESTION, "world_prompt": CUP, **arguments})


def test_a_prompt_beside_latents_is_refused_by_the_model_too(model: TheWorld) -> None:
    inputs = _reading(model, torch.zeros(1, 4, 3, 4, 4))
    with pytest.raises(ValueError, match="world_prompt has no effect without world_frames"):
        model.model(**inputs, world_prompt=CUP)


# -- kept with the adapter --------------------------------------------------------------------------------------------


def test_an_adapter_keeps_the_default_prompts(bases: Path, tmp_path: Path, hf_home: Path) -> None:
    shutil.copytree(bases, tmp_path / "bases")
    model = build(tmp_path / "bases")
    model.save_pretrained(tmp_path / "before")
    assert not (tmp_path / "before" / "prompt_embeds.safetensors").exists(), "nothing was imagined yet"
    latents = model.imagine(pixels())
    model.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(hf_home)
    shutil.rmtree(tmp_path / "bases" / "cosmos" / "text_encoder")

    loaded = TheWorld.from_pretrained(tmp_path / "adapter", device="cpu")

    assert torch.equal(loaded.imagine(pixels()), latents)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "prompt_embeds.safetensors").is_file(), "and passes them on"
    assert not hf_home.exists()
    with pytest.raises(ValueError, match=r"text_encoder/config\.json"):
        TheWorld.from_pretrained(tmp_path / "before", device="cpu").imagine(pixels())


def test_a_full_export_imagines_without_a_text_encoder(bases: Path, tmp_path: Path, hf_home: Path) -> None:
    model = build(bases)
    latents = model.imagine(pixels())
    model.save_pretrained(tmp_path / "whole", full=True)
    shutil.rmtree(hf_home)
    loaded = TheWorld.from_pretrained(tmp_path / "whole", device="cpu")
    torch.testing.assert_close(loaded.imagine(pixels()), latents)
    assert loaded.runner.world.needs_guardrail, "they are NVIDIA's weights still"
    with pytest.raises(ValueError, match="no text encoder"):
        loaded.imagine(pixels(), world_prompt=CUP)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(model: TheWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "fused"
    model.config.reads_world_tokens = True  # as after training
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.fromarray(pixels()).save(tmp_path / "now.png")
    return str(tmp_path / "now.png")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("checked")
def test_ask_and_imagine_take_a_prompt(adapter: Path, image: str, tmp_path: Path) -> None:
    loaded = TheWorld.from_pretrained(adapter, device="cpu")
    common = ("--model", adapter, "--device", "cpu", "--prompt", CUP, "--json")
    code, out, err = run("ask", image, QUESTION, "--max-new-tokens", 4, *common)
    assert code == 0, err
    content = json.loads(out)
    assert content["world_prompt"] == CUP
    assert content["answer"] == loaded.generate(image, QUESTION, 4, world_prompt=CUP)
    code, out, err = run("imagine", image, "-o", tmp_path / "future.png", *common)
    assert code == 0, err
    assert json.loads(out)["world_prompt"] == CUP
    assert guardrail_calls().count(CUP) == 1, "a prompt that passed has passed"
    run("imagine", image, "-o", tmp_path / "plain.png", *common[:4])
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "future.png").read_bytes()


def test_without_the_guardrail_a_command_says_how_to_install_it(adapter: Path, image: str, tmp_path: Path) -> None:
    for command in (("ask", image, QUESTION, "--prompt", CUP), ("imagine", image, "-o", tmp_path / "future.gif")):
        code, out, err = run(*command, "--model", adapter, "--device", "cpu")
        assert (code, out) == (1, "")
        assert "cosmos_guardrail`, or pip" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "future.gif").exists()


def test_nano_says_that_it_takes_no_prompt(image: str, tmp_path: Path) -> None:
    code, out, err = run("imagine", image, "-o", tmp_path / "future.gif", "--prompt", CUP)
    assert (code, out) == (1, "")
    assert err.startswith("Error: This world model has no text encoder")


@pytest.mark.parametrize("command", ["ask", "imagine"])
def test_help_tells_of_the_prompt(command: str) -> None:
    assert "--prompt" in run(command, "--help")[1]


def test_a_stored_default_needs_no_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "encode_texts", lambda *arguments: pytest.fail("the text encoder was read"))
    bases = tiny_bases(tmp_path)
    model = TheWorld(
        bases["vlm_name_or_path"], 1, bases["world_name_or_path"], world_image_size=TINY_SIZE, device="cpu"
    )
    assert model.imagine(pixels()).shape == (1, 4, 2, 4, 4)
    assert model.decode(model.imagine(pixels())).shape == (1, 5, TINY_SIZE, TINY_SIZE, 3)
