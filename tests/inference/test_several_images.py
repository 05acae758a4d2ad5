"""Several images in one question, each with its own world tokens: from the processor to the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.prompts import embeds_of, kinds_of, runs_of
from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.cli import app

QUESTION = "Which bin will the ball land in?"
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def build(bases: dict[str, str], **arguments: Any) -> TheWorld:
    values = {"num_world_steps": 1, "max_world_steps": 4, "world_image_size": TINY_SIZE, "device": "cpu", **arguments}
    return TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], **values)


@pytest.fixture(scope="module")
def model(bases: dict[str, str]) -> TheWorld:
    return build(bases, world_images="all")


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


# -- where the blocks stand -------------------------------------------------------------------------------------------


def test_world_tokens_follow_the_tokens_of_their_image(model: TheWorld) -> None:
    inputs = model.prepare([pixels(0), pixels(1)], QUESTION, num_world_steps=2)
    (row,) = inputs["input_ids"]
    assert kinds_of(model, row) == ".p.w.p.w."
    worlds = runs_of(row, model.config.world_token_id)
    assert [len(run) for run in worlds] == [model.config.world_token_count(2)] * 2
    images = runs_of(row, model.model.vlm.config.image_token_id)
    between = [row[own[-1] + 1 : world[0]] for own, world in zip(images, worlds, strict=True)]
    ends = [model.processor.tokenizer.decode(ids) for ids in between]
    assert ends == ["<end_of_image>\n\n"] * 2, "only the end of the image is between them"
    first = model.prepare([pixels(0), pixels(1)], QUESTION, num_world_steps=2, world_images="first")
    assert kinds_of(model, first["input_ids"][0]) == ".p.w.p."


def test_world_rows_are_in_the_order_of_the_images(model: TheWorld) -> None:
    together = model.prepare([[pixels(0), pixels(1)], [pixels(2)]], [QUESTION, "yes"])
    alone = [model.prepare(pixels(number), QUESTION) for number in range(3)]
    for name in ("world_frames", "world_seeds", "num_world_steps"):
        assert torch.equal(together[name], torch.cat([inputs[name] for inputs in alone])), name


def test_another_second_image_changes_its_own_block_and_nothing_else(model: TheWorld) -> None:
    one, other = (model.prepare([pixels(0), pixels(second)], QUESTION) for second in (1, 2))
    assert torch.equal(one["input_ids"], other["input_ids"])
    moved = (embeds_of(model, **one) - embeds_of(model, **other))[0].abs().amax(dim=1) > 1e-5
    (row,) = one["input_ids"]
    own = runs_of(row, model.model.vlm.config.image_token_id)[1] + runs_of(row, model.config.world_token_id)[1]
    inside = torch.zeros_like(moved)
    inside[own] = True
    assert not moved[~inside].any()
    boundaries = 2  # they are the same for every image
    assert moved[inside].sum() == len(own) - boundaries


def test_a_batch_of_unequal_questions_is_its_members(model: TheWorld) -> None:
    questions = [QUESTION, "yes", "Is the red ball on the left?", "no"]
    images = [[pixels(0)], [pixels(1), pixels(2), pixels(3)], [], [pixels(4), pixels(0)]]
    together = model.prepare(images, questions)
    assert together["world_frames"].shape[0] == together["pixel_values"].shape[0] == 6
    with torch.no_grad():
        logits = model.model(**together).logits[:, -1]
        for row, (own, question) in enumerate(zip(images, questions, strict=True)):
            single = model.prepare(own or None, question)
            assert ("world_frames" in single) == bool(own)
            torch.testing.assert_close(logits[row], model.model(**single).logits[0, -1], **CLOSE)
    answers = model.generate(images, questions, 4, mode="tokens")
    assert answers == [
        model.generate(own or None, question, 4, mode="tokens") for own, question in zip(images, questions, strict=True)
    ]


# -- all and first, for a model and for a call ------------------------------------------------------------------------


def test_a_call_can_choose_which_images_have_world_tokens(bases: dict[str, str], model: TheWorld) -> None:
    first = build(bases)
    assert first.config.world_images == "first"
    two = [pixels(0), pixels(1)]
    for ask in ("prepare", "forward"):
        with torch.no_grad():
            ours, theirs = getattr(first, ask)(two, QUESTION, world_images="all"), getattr(model, ask)(two, QUESTION)
        for name in (set(ours) & set(theirs)) - {"past_key_values"}:
            assert torch.equal(ours[name], theirs[name]), (ask, name)
    answer = first.generate(two, QUESTION, 5, mode="tokens", world_images="all")
    assert answer == model.generate(two, QUESTION, 5, mode="tokens")
    assert answer == "".join(first.stream(two, QUESTION, 5, mode="tokens", world_images="all")).strip()
    with pytest.raises(ValueError, match="world_images is 'both'; choose 'first' or 'all'"):
        first.generate(two, QUESTION, 5, world_images="both")
    assert first.config.world_images == "first", "a call changes nothing for the next"


def test_latents_of_every_image_can_be_passed_back(model: TheWorld) -> None:
    two = [pixels(0), pixels(1)]
    latents = model.imagine(two, 2)
    assert latents.shape[:3] == (2, 4, 3)
    answer = model.generate(two, QUESTION, 5, mode="tokens", num_world_steps=2)
    assert answer == model.generate(two, QUESTION, 5, mode="tokens", world_latents=latents)
    with pytest.raises(ValueError, match=r"the shape \(1, 4, 2, 4, 4\); they must be \(2, 4, T, 4, 4\)"):
        model.generate(two, QUESTION, 5, mode="tokens", world_latents=latents[:1, :, :2])


def test_each_world_counts(model: TheWorld) -> None:
    """Changing either image's future changes the answer's logits."""
    inputs = dict(model.prepare([pixels(0), pixels(1)], QUESTION))
    for name in ("world_frames", "world_seeds", "num_world_steps"):
        del inputs[name]
    latents = model.imagine([pixels(0), pixels(1)], 1)
    with torch.no_grad():
        logits = model.model(**inputs, world_latents=latents).logits[:, -1]
        for image in range(2):
            other = latents.clone()
            other[image, :, 1] += 1
            assert (model.model(**inputs, world_latents=other).logits[:, -1] - logits).abs().max() > 1e-3


def test_learning_reaches_the_projector_through_every_block(model: TheWorld) -> None:
    loss = model.forward([pixels(0), pixels(1)], QUESTION, labels="left").loss
    together = torch.autograd.grad(loss, model.model.projector.boundaries)[0]
    loss = model.forward([pixels(0), pixels(1)], QUESTION, labels="left", world_images="first").loss
    alone = torch.autograd.grad(loss, model.model.projector.boundaries)[0]
    assert together.abs().amin() > 0
    assert (together - alone).abs().max() > 1e-6


def test_frames_of_each_image_are_introduced(model: TheWorld) -> None:
    two = [pixels(0), pixels(1)]
    frames = model.decode(model.imagine(two, 1))
    words = "Pictures 1 to 2 show what is there now."
    words += " Picture 3 shows what is imagined to happen after picture 1, in order of time."
    first = f"{words}\n\n{QUESTION}"
    both = f"{words} Picture 4 shows what is imagined to happen after picture 2, in order of time.\n\n{QUESTION}"
    for world_images, extra, question in (("first", frames[:1, 4], first), ("all", frames[:, 4], both)):
        answer = model.generate(two, QUESTION, 5, mode="frames", world_images=world_images)
        assert answer == model.generate([*two, *extra], question, 5, enable_world=False)


# -- the command line -------------------------------------------------------------------------------------------------


def test_ask_imagines_the_future_of_every_image_on_request(bases: dict[str, str], tmp_path: Path) -> None:
    built = build(bases)
    built.config.reads_world_tokens = True  # as after training
    built.save_pretrained(tmp_path / "model")
    for number in range(2):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    images = [str(tmp_path / f"{number}.png") for number in range(2)]
    command = [
        "ask",
        *images,
        QUESTION,
        "--model",
        str(tmp_path / "model"),
        "--device",
        "cpu",
        "--max-new-tokens",
        "5",
    ]
    answers = set()
    for options, world_images in (([], "first"), (["--world-images", "all"], "all")):
        done = CliRunner().invoke(app, [*command, *options, "--json"])
        assert done.exit_code == 0, done.output
        answer = built.generate([pixels(0), pixels(1)], QUESTION, 5, mode="tokens", world_images=world_images)
        assert json.loads(done.stdout)["answer"] == answer
        answers.add(answer)
    assert len(answers) == 2, "the second world was heard"
    failed = CliRunner().invoke(app, [*command, "--world-images", "both"])
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "'both' is not one of" in " ".join(failed.stderr.replace("│", " ").split())
    assert "--world-images" in CliRunner().invoke(app, ["ask", "--help"]).stdout
