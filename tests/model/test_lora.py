"""Claims about the LoRA: it and the projector alone are trainable, it is saved, and merging keeps the logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model.test_loading import QUESTION, logits, pixels, same, shake
from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld, TheWorldConfig
from theworld.model import lora
from theworld.model.lora_settings import lora_settings

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def build(bases: dict[str, str], **arguments) -> TheWorld:
    values = {"max_world_steps": 4, "world_image_size": TINY_SIZE, "device": "cpu", **arguments}
    return TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], **values)


def test_a_rank_is_all_it_takes(bases: dict[str, str]) -> None:
    model = build(bases, lora=4)
    layers = lora.layers_of(model.model.language_model)
    assert sorted(layers) == sorted(
        f"layers.{i}.{place}" for i in range(3) for place in (
            *(f"self_attn.{name}" for name in ALL_LINEAR[:4]), *(f"mlp.{name}" for name in ALL_LINEAR[4:]),
        )
    )  # fmt: skip
    assert all(layer.r["default"] == 4 and layer.scaling["default"] == 2.0 for layer in layers.values())
    assert "lora" not in " ".join(name for name, _ in model.model.vlm.model.vision_tower.named_modules())
    rows = {row.part: row for row in model.parameter_table()}
    sides = sum(layer.in_features + layer.out_features for layer in layers.values())
    assert rows["lora"].trainable == rows["lora"].total == 4 * sides
    assert {row.part for row in rows.values() if row.trainable} == {"projector", "lora"}


def test_a_dict_sets_what_it_names_and_leaves_the_rest(bases: dict[str, str]) -> None:
    model = build(bases, lora={"r": 2, "target_modules": ["q_proj"]})
    layers = lora.layers_of(model.model.language_model)
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj"}
    assert model.config.lora == {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    assert TheWorldConfig.from_dict(json.loads(model.config.to_json_string(use_diff=False))).lora == model.config.lora


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (0, "rank of lora is 0"),
        (True, "rank of lora is True"),
        (2.5, "rank of lora is 2.5"),
        ({"rank": 4}, "lora has a key 'rank'; known are r, "),
        ({"bias": "all"}, "lora has a key 'bias'"),
        ({"init_lora_weights": "pissa"}, "must be true or false"),
    ],
)
def test_settings_that_are_none(settings: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora_settings(settings)  # type: ignore[arg-type]


def test_a_step_moves_the_lora_and_the_projector_alone(bases: dict[str, str]) -> None:
    model = build(bases, lora=2).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(2):  # A has no gradient while B is zero
        optimizer.zero_grad()
        model.forward(pixels(), QUESTION, labels="left", num_world_steps=0).loss.backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == expected
    assert any("lora_A" in name for name in moved)
    assert any("projector" in name for name in moved)


def test_merging_keeps_the_logits_and_makes_a_full_export_possible(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases, lora=4)
    shake(model)
    with model.model.lora_disabled():
        plain = logits(model)
    before = logits(model)
    assert (before - plain).abs().max() > 0.1, "the LoRA does something"
    with pytest.raises(ValueError, match=r"call merge_lora\(\) first"):
        model.save_pretrained(tmp_path / "full", full=True)
    assert not (tmp_path / "full").exists()
    model.save_pretrained(tmp_path / "adapter")
    model.merge_lora()
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]
    assert {row.part for row in model.parameter_table() if row.trainable} == {"projector"}
    with pytest.raises(ValueError, match="has no LoRA to merge"):
        model.merge_lora()
    model.save_pretrained(tmp_path / "full", full=True)
    exported = TheWorld.from_pretrained(tmp_path / "full", device="cpu")
    same(logits(exported), logits(model))
    assert exported.config.lora is None
    held = (tmp_path / "full" / "model.safetensors").stat().st_size
    assert held < 60_000, "the language model is in vlm/ and not a second time in the adapter"
    # saved without the bases, the merged language model is what the adapter holds
    model.save_pretrained(tmp_path / "merged")
    same(logits(TheWorld.from_pretrained(tmp_path / "merged", device="cpu")), logits(model))
    torch.testing.assert_close(logits(TheWorld.from_pretrained(tmp_path / "adapter", device="cpu")), before)


def test_a_lora_that_is_not_finite_is_not_merged(bases: dict[str, str]) -> None:
    model = build(bases, lora=2)
    layer = lora.layers_of(model.model.language_model)["layers.1.mlp.up_proj"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"The LoRA of layers\.1\.mlp\.up_proj has non-finite values"):
        model.merge_lora()
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == ["model.vlm.model.language_model.layers.1.mlp.up_proj.lora_B.default.weight"]


def test_a_trained_model_takes_no_new_lora(bases: dict[str, str], tmp_path: Path) -> None:
    build(bases).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is already configured, so lora cannot be changed any more"):
        TheWorld(tmp_path, lora=4)
