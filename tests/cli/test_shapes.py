"""Claims about info --shapes: it reports the shapes of a running model, and the page shows its output."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.tiny import tiny_model
from theworld.cli import app
from theworld.inference.pipeline import TheWorld
from theworld.inspection.shapes import QUESTION

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
SHOWN = re.compile(r"`(theworld info (?!MODEL)[^`]*--shapes[^`]*)`.*?```text\n(.*?)```", re.DOTALL)


def said(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["info", *map(str, arguments), "--shapes", "--json"])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def shapes(content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {row["what"]: tuple(row["shape"]) for row in content["shapes"]}


def really(model: TheWorld, steps: int, batch: int) -> dict[str, tuple[int, ...]]:
    """The shapes that a call of a loaded model passes through, by hooks."""
    seen: dict[str, tuple[int, ...]] = {}

    def keep(name: str, what: Any) -> None:
        seen[name] = tuple(what.shape)

    inner, vlm = model.model, model.model.vlm
    hooks = [
        vlm.model.vision_tower.register_forward_hook(lambda m, a, out: keep("its patches", out.last_hidden_state)),
        vlm.model.multi_modal_projector.register_forward_hook(lambda m, a, out: keep("its soft tokens", out)),
        inner.projector.register_forward_hook(lambda m, a, out: keep("its world tokens", out)),
        inner.projector.projection.register_forward_pre_hook(lambda m, a: keep("its cells, m×m per token", a[0])),
        vlm.register_forward_pre_hook(
            lambda m, a, k: keep("prompt, its placeholders filled", k["inputs_embeds"]), with_kwargs=True
        ),
    ]
    image = np.zeros((20, 30, 3), np.uint8)
    inputs = model.prepare([image] * batch, [QUESTION] * batch, num_world_steps=steps)
    with torch.no_grad():
        keep("image, as Gemma sees it", inputs["pixel_values"])
        keep("image, as the world model sees it", inputs["world_frames"])
        keep("prompt, one placeholder per token", inputs["input_ids"])
        latents = model.imagine([image] * batch, steps)
        keep("latents of now", latents[:, :, :1])
        if steps:
            keep("latents of now and the future", latents)
            keep("decoded frames, for people", inner.world.decode(latents))
        keep("logits, the last row for the next token", inner(**inputs).logits)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("values", "steps", "batch"),
    [
        pytest.param({}, 2, 1, marks=pytest.mark.slow),
        ({}, 0, 1),
        ({"spatial_merge": 2, "projector": "mlp"}, 1, 3),
        pytest.param({"projector": "resampler"}, 2, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_shapes_are_those_of_a_model_that_runs(
    family: Path, tmp_path: Path, values: dict[str, Any], steps: int, batch: int
) -> None:
    bases = {"vlm_name_or_path": family / "bases" / "gemma", "world_name_or_path": family / "bases" / "cosmos"}
    model, _ = tiny_model({name: str(folder) for name, folder in bases.items()}, **values)
    model.save_pretrained(tmp_path)
    loaded = TheWorld.from_pretrained(tmp_path, device="cpu")
    loaded.model.world.load_parts("decoder", "transformer")
    content = said(tmp_path, "--steps", steps, "--batch", batch)
    assert shapes(content) == really(loaded, steps, batch)
    assert list(shapes(content)) == [row["what"] for row in content["shapes"]], "no name twice"


@pytest.fixture(scope="module")
def fused(family: Path) -> dict[str, Any]:
    """What the command says of a trained model with one step."""
    return said(family / "fused", "--steps", 1)


def test_the_layout_is_that_of_the_prompt(family: Path, fused: dict[str, Any]) -> None:
    model = TheWorld.from_pretrained(family / "fused", device="cpu")
    inputs = model.prepare(np.zeros((8, 8, 3), np.uint8), QUESTION, num_world_steps=1)
    ids = inputs["input_ids"][0]
    special = {
        "soft tokens of the image": model.config.vlm_config.image_token_id,
        "world tokens": model.config.world_token_id,
    }
    for block in fused["prompt"]:
        own = ids[block["first"] : block["first"] + block["tokens"]]
        if block["what"] in special:
            assert (own == special[block["what"]]).all()
        elif not block["what"].startswith("<"):
            assert repr(model.processor.tokenizer.decode(own)) == block["what"]
    assert sum(block["tokens"] for block in fused["prompt"]) == fused["prompt_tokens"] == len(ids)


def test_a_model_without_a_world_has_no_world_in_its_shapes(family: Path) -> None:
    content = said(family / "direct")
    assert not [row for row in content["shapes"] if "latents" in row["what"] or "world" in row["what"]]
    assert "world tokens" not in [block["what"] for block in content["prompt"]]


@pytest.mark.parametrize("model", ["nano", pytest.param("google/gemma-3-4b-it", marks=pytest.mark.slow)])
def test_the_page_shows_what_the_command_says(model: str) -> None:
    examples = dict(SHOWN.findall(PAGE.read_text("utf-8")))
    assert len(examples) == 2
    (command,) = [command for command in examples if command.split()[2] == model]
    result = CliRunner().invoke(app, command.split()[1:])
    assert result.exit_code == 0, result.output
    lines = [[line.rstrip() for line in text.strip().splitlines()] for text in (result.stdout, examples[command])]
    assert lines[0] == lines[1], f"paste the output of `{command}` into {PAGE.name}"


def test_nothing_is_read(family: Path, fused: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theworld.storage.adapters.load_file", lambda *a: pytest.fail("weights were read"))
    for file in (family / "fused").glob("*"):
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert shapes(said(tmp_path, "--steps", 1)) == shapes(fused)
