"""Claims about quantised base models: what is quantised, that nothing else changes, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from tests.model.test_loading import QUESTION, logits, pixels, shake
from tests.model.test_lora import build
from tests.tiny import tiny_bases
from theworld import TheWorld
from theworld.inspection.parameters import build_on_meta
from theworld.model.fast_path import unsupported_model
from theworld.model.freezing import fingerprints
from theworld.quantization import quantised_layers
from theworld.training import fast_path
from theworld.world_models.base import WORLD_PARTS
from theworld.world_models.cosmos_predict2 import CosmosPredict2

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.quantization
KINDS = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def quantised(bases: dict[str, str]) -> dict[str, TheWorld]:
    """A fusion in 4 bits and one in 8, with the world transformer in memory."""
    return {name: new(bases, quantization=name) for name in KINDS}


def new(bases: dict[str, str], **arguments: Any) -> TheWorld:
    torch.manual_seed(0)
    return build(bases, num_world_steps=2, dtype="float32", **arguments)


def layers(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kind)}


def with_rounded_weights(bases: dict[str, str], model: TheWorld, **arguments: Any) -> TheWorld:
    """The same model with ordinary layers, whose weights are those that the quantised ones stand for."""
    plain = new(bases, **arguments)
    rounded = dict(model.model.named_modules())
    for name, module in plain.model.named_modules():
        twin = rounded[name]
        if isinstance(twin, tuple(KINDS.values())):
            module.weight.data = dequantize_bnb_weight(twin.weight, getattr(twin, "state", None)).float()
        elif isinstance(module, nn.Linear):
            module.weight.data = twin.weight.data
    plain.model.projector.load_state_dict(model.model.projector.state_dict())
    return plain


@pytest.mark.parametrize("name", KINDS)
def test_the_linear_layers_of_the_frozen_parts_are_quantised(quantised: dict[str, TheWorld], name: str) -> None:
    model = quantised[name].model
    expected = set(quantised_layers(build_on_meta(model.config)))
    assert layers(model, KINDS[name]) == expected
    assert {name.split(".")[2] for name in expected} == {"language_model", "vision_tower", "transformer_blocks"}
    assert not [name for name in expected if "norm" in name or "lm_head" in name or "vae" in name]
    assert model.dtype == model.projector.dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_the_rounded_weights(
    bases: dict[str, str], quantised: dict[str, TheWorld], name: str
) -> None:
    plain = new(bases)
    assert plain.get_trainable_parameters() == quantised[name].get_trainable_parameters(), "counted as if not packed"
    plain.model.projector.load_state_dict(quantised[name].model.projector.state_dict())
    rounded = with_rounded_weights(bases, quantised[name])
    exact, found, expected = (logits(model) for model in (plain, quantised[name], rounded))
    error, rounding = (found - expected).abs().mean(), (exact - expected).abs().mean()
    assert 0 < rounding < exact.std()
    assert error < (1e-4 if name == "4bit" else 2 * rounding), "8 bits round the inputs as well"
    latents = [model.imagine(pixels(), 2) for model in (quantised[name], rounded)]
    torch.testing.assert_close(*latents, atol=1e-3 if name == "4bit" else 0.1, rtol=0)


def test_the_projector_learns_through_quantised_layers(bases: dict[str, str], quantised: dict[str, TheWorld]) -> None:
    gradients = []
    for model in (quantised["4bit"], with_rounded_weights(bases, quantised["4bit"])):
        model.zero_grad()
        model.forward(pixels(), QUESTION, labels="left", num_world_steps=0).loss.backward()
        gradients.append([parameter.grad for parameter in model.model.projector.parameters()])
        assert all(parameter.grad is None for parameter in model.model.vlm.parameters())
    assert any(gradient.abs().max() > 0 for gradient in gradients[0] if gradient is not None)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_a_lora_learns_on_quantised_layers_and_is_saved(bases: dict[str, str], tmp_path: Path, name: str) -> None:
    model = new(bases, quantization=name, lora=2)
    model.forward(pixels(), QUESTION, labels="left", num_world_steps=0).loss.backward()
    trained = {key for key, parameter in model.model.named_parameters() if parameter.grad is not None}
    assert any("lora_B" in key for key in trained)
    shake(model)
    model.save_pretrained(tmp_path / "adapter")
    again = TheWorld.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32", quantization=name)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="cannot be merged into quantised weights; load the model without"):
        model.merge_lora()


def test_an_adapter_is_the_same_as_without_quantization(bases: dict[str, str], tmp_path: Path) -> None:
    for name in (None, "4bit", "8bit"):
        model = new(bases, quantization=name)
        shake_alike(model)
        model.forward(pixels(), QUESTION, num_world_steps=0)
        model.save_pretrained(tmp_path / str(name))
    first, *others = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("None", *KINDS)
    )
    assert set(first) == {"config.json", "model.safetensors"}
    assert all(other == first for other in others)
    with pytest.raises(ValueError, match="A full export needs the base models as they are stored"):
        model.save_pretrained(tmp_path / "full", full=True)


def shake_alike(model: TheWorld) -> None:
    model.model.projector.load_state_dict(
        {key: torch.full_like(value, 0.01) for key, value in model.model.projector.state_dict().items()}
    )


def test_transformers_users_pass_a_quantization_config(bases: dict[str, str], tmp_path: Path) -> None:
    new(bases).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    weight = model.vlm.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.quant_type == "fp4"
    block = model.world.transformer.transformer_blocks[0]
    assert block.attn1.to_q.weight.quant_state.quant_type == "fp4"
    assert type(block.norm1.linear_1) is nn.Linear


def test_fast_paths_are_left_to_other_weights(bases: dict[str, str], quantised: dict[str, TheWorld]) -> None:
    model = quantised["4bit"].model
    assert unsupported_model(model, model.device) == "its weights are quantised"
    assert fast_path.why_not(torch.device("cuda"), False, "bf16", quantised=True) == "its weights are quantised"
    plain = new(bases).model
    parts = ("vision", "world_transformer")
    assert not set(fingerprints(plain, parts).values()) & set(
        fingerprints(model, parts).values()
    ), "caches are separate"


def test_what_is_not_possible_is_refused(bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {
        "quantization is '2bit'; choose one of 4bit, 8bit": {"quantization": "2bit"},
        "did you mean 'quantization'": {"quantization_config": "4bit"},
        "world_model_offload is 'disk'; choose one of none, cpu": {"world_model_offload": "disk"},
        "world_model_offload is cpu, but the model is on cpu": {"world_model_offload": "cpu"},
        "whose weights bitsandbytes keeps on the GPU": {"quantization": "8bit", "world_model_offload": "cpu"},
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=message):
            new(bases, **arguments)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "bits" in name else find(name, *rest))
    with pytest.raises(ValueError, match=r"needs bitsandbytes, which is not installed; install it with `uv pip"):
        new(bases, quantization="4bit")


@pytest.mark.parametrize("quantization", [pytest.param(None, marks=pytest.mark.slow), "4bit"])
def test_an_offloaded_transformer_imagines_the_same(bases: dict[str, str], quantization: str | None) -> None:
    settings = None if quantization is None else BitsAndBytesConfig(load_in_4bit=True)
    imagined = []
    for offload in ("none", "cpu"):
        world = CosmosPredict2.from_pretrained(
            bases["world_name_or_path"], WORLD_PARTS, quantization=settings, offload=offload
        )
        torch.manual_seed(0)
        frames = torch.rand(1, 3, 1, 32, 32) * 2 - 1
        imagined.append([world.imagine(frames, 2, seeds=[3]), world.imagine(frames, 1, seeds=[3])])
    hooked = [hasattr(block, "_diffusers_hook") for block in world.transformer.transformer_blocks]
    assert all(hooked)
    torch.testing.assert_close(*imagined, atol=0, rtol=0)


def test_every_cpu_computes_the_same(quantised: dict[str, TheWorld]) -> None:
    """bitsandbytes has kernels for some CPUs, which round to bfloat16 and do not know all widths."""
    found = [module for module in quantised["4bit"].model.modules() if isinstance(module, KINDS["4bit"])]
    assert found
    assert not any(module.support_avx512bf16_for_cpu for module in found)
