"""Claims about saving: everything that changed since loading is written; a full export keeps the dtype of its bases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.model.test_loading import logits, same
from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.model import freezing, lora
from theworld.model.modeling import TheWorldForConditionalGeneration


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def build(bases: dict[str, str], **arguments) -> TheWorld:
    values = {"max_world_steps": 4, "world_image_size": TINY_SIZE, "device": "cpu", **arguments}
    return TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], **values)


@torch.no_grad()
def change(parameters: list[torch.nn.Parameter]) -> None:
    parameters[0].view(-1)[-1] += 1.0  # one weight of one tensor


@pytest.mark.parametrize("full", [False, True])
def test_weights_that_are_no_numbers_are_not_saved(bases: dict[str, str], tmp_path: Path, full: bool) -> None:
    model = build(bases)
    with torch.no_grad():
        model.model.projector.row.view(-1)[3] = float("nan")
    with pytest.raises(
        ValueError, match=r"^projector\.row has values that are infinite or no number, so nothing is sav"
    ):
        model.save_pretrained(tmp_path / "model", full=full)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("part", ["projector", "lora", "vision", "language", "vae_encoder"])
def test_a_part_that_changed_is_saved_also_when_it_is_frozen(bases: dict[str, str], tmp_path: Path, part: str) -> None:
    model = build(bases, lora=2)
    model.requires_grad_(False)
    change([tensor for _, tensor in freezing.parameters_of(model.model, [part])])
    model.save_pretrained(tmp_path / "adapter")
    names = {freezing.part_of(name) for name in load_file(tmp_path / "adapter" / "model.safetensors")}
    assert names == {part}
    model.save_checkpoint(tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)["model"]
    assert {freezing.part_of(name) for name in saved} == {part}
    if part != "lora":  # an adapter without its LoRA starts with an initial one, drawn at random
        loaded = TheWorld.from_pretrained(tmp_path / "adapter", device="cpu", dtype="float32")
        for name, tensor in freezing.parameters_of(model.model, [part]):
            assert torch.equal(dict(loaded.model.named_parameters())[name], tensor), name


def test_nothing_changed_is_nothing_saved(bases: dict[str, str], tmp_path: Path) -> None:
    for dtype in (None, torch.bfloat16):  # another dtype is no change
        model = build(bases)
        model.requires_grad_(False)
        if dtype is not None:
            model.to(dtype)
        assert model.model.adapter_tensors() == {}
        with torch.no_grad():
            model.model.language_model.embed_tokens.weight.mul_(2)
        assert {freezing.part_of(name) for name in model.model.adapter_tensors()} == {"language"}


def test_a_sharded_part_is_not_taken_for_a_changed_one(bases: dict[str, str]) -> None:
    """ZeRO-3 leaves empty tensors on each rank; the trainer gathers what it trains."""
    model = build(bases)
    model.requires_grad_(False)
    for _, parameter in freezing.parameters_of(model.model, ["vision"]):
        parameter.data = parameter.data.new_empty(0)
    assert model.model.adapter_tensors() == {}


@pytest.mark.parametrize("size", [1, 3, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_weight_counts_in_a_checksum(size: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(size + 1, dtype=dtype)[1:]  # not aligned to eight bytes
    before = freezing.checksum(tensor)
    assert freezing.checksum(tensor.clone()) == before
    for position in range(size):
        tensor[position] += 1
        assert freezing.checksum(tensor) != before
        tensor[position] -= 1


def test_a_lora_that_peft_merged_is_saved(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases)
    plain = logits(model)
    adapted = get_peft_model(model.model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    with pytest.raises(ValueError, match=r"LoRA layers that were not added by lora=.*call peft's merge_and_unload"):
        model.save_pretrained(tmp_path / "unmerged")
    adapted.merge_and_unload()
    before = logits(model)
    assert (before - plain).abs().max() > 0.01, "the LoRA does something"
    model.save_pretrained(tmp_path / "merged")
    same(logits(TheWorld.from_pretrained(tmp_path / "merged", device="cpu")), before)


def test_a_lora_that_is_merged_in_place_is_refused(bases: dict[str, str], tmp_path: Path) -> None:
    """It would be saved twice: in the weights of the language model, and as a LoRA."""
    model = build(bases, lora=2)
    layers = lora.layers_of(model.model.language_model).values()
    for layer in layers:
        layer.merge()
    with pytest.raises(ValueError, match="merged in place"):
        model.save_pretrained(tmp_path / "merged")
    for layer in layers:
        layer.unmerge()
    model.save_pretrained(tmp_path / "unmerged")


@pytest.mark.parametrize("part", ["world_transformer", "vae_decoder"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_changed_world_model_needs_a_full_export(
    bases: dict[str, str], tmp_path: Path, part: str, trainable: bool
) -> None:
    model = build(bases)
    model.model.world.load_parts("transformer", "decoder")
    model.model.loaded_weights = freezing.PartChecksums(model.model)
    tensors = [tensor for _, tensor in freezing.parameters_of(model.model, [part])]
    if trainable:
        tensors[0].requires_grad_(True)
    else:
        change(tensors)
    with pytest.raises(
        ValueError, match=f"weights of {part} were changed, which an adapter cannot hold; save with full"
    ):
        model.save_pretrained(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "full", full=True)
    loaded = TheWorld.from_pretrained(tmp_path / "full", device="cpu", dtype="float32")
    loaded.model.world.load_parts("transformer", "decoder")
    read = [tensor for _, tensor in freezing.parameters_of(loaded.model, [part])]
    assert all(torch.equal(own, other) for own, other in zip(tensors, read, strict=True))


@torch.no_grad()
def test_weights_that_changed_places_have_changed(bases: dict[str, str]) -> None:
    model = build(bases)
    layers = model.model.language_model.layers
    first, last = (layers[place].mlp.up_proj.weight for place in (0, -1))
    assert first is not last
    kept = first.clone()
    first.copy_(last)
    last.copy_(kept)
    assert model.model.loaded_weights.changed(model.model) == {"language"}
    last.copy_(first)
    first.copy_(kept)
    assert model.model.loaded_weights.changed(model.model) == set()
    rows = first[[1, 0]].clone()
    first[:2] = rows
    assert model.model.loaded_weights.changed(model.model) == {"language"}


@torch.no_grad()
def test_a_change_is_seen_after_another_dtype(bases: dict[str, str]) -> None:
    model = build(bases)
    model.requires_grad_(False)
    model.model.get_input_embeddings().weight[-1] += 1.0
    model.to(torch.bfloat16)
    assert {freezing.part_of(name) for name in model.model.adapter_tensors()} == {"language"}


def test_the_world_model_of_a_merged_export_keeps_its_dtype(half_bases: dict[str, str], tmp_path: Path) -> None:
    model = build(half_bases, lora=2, dtype="float32")
    model.merge_lora()
    model.save_pretrained(tmp_path, full=True)
    found = stored_dtypes(tmp_path)
    assert found["vlm"] == {torch.float32}
    assert found["vae"] == found["transformer"] == {torch.bfloat16}


def stored_dtypes(folder: Path) -> dict[str, set[torch.dtype]]:
    files = {"vlm": "vlm", "vae": "world/vae", "transformer": "world/transformer"}
    found = {}
    for name, place in files.items():
        tensors = [load_file(file) for file in (folder / place).glob("*.safetensors")]
        found[name] = {tensor.dtype for each in tensors for tensor in each.values() if tensor.is_floating_point()}
    return found


@pytest.fixture(scope="module")
def half_bases(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same base models, stored in bfloat16 as the published ones are."""
    folder = tmp_path_factory.mktemp("half")
    build(bases).save_pretrained(folder, full=True, dtype="bfloat16")
    return {"vlm_name_or_path": str(folder / "vlm"), "world_name_or_path": str(folder / "world")}


def test_a_full_export_keeps_the_dtype_of_the_stored_bases(half_bases: dict[str, str], tmp_path: Path) -> None:
    model = build(half_bases, dtype="float32")
    before = logits(model)
    model.save_pretrained(tmp_path / "full", full=True)
    assert set.union(*stored_dtypes(tmp_path / "full").values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "full" / "vlm" / "config.json").read_text())["dtype"] == "bfloat16"
    same(logits(model), before)  # the model in memory is what it was
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.model.vlm.config.dtype == torch.float32
    loaded = TheWorld.from_pretrained(tmp_path / "full", device="cpu", dtype="float32")
    same(logits(loaded), before)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "full").dtype == torch.bfloat16


def test_the_dtype_of_a_full_export_may_be_chosen(half_bases: dict[str, str], tmp_path: Path) -> None:
    model = build(half_bases, dtype="float32")
    model.save_pretrained(tmp_path / "chosen", full=True, dtype="float16")
    assert set.union(*stored_dtypes(tmp_path / "chosen").values()) == {torch.float16}
    change(list(model.model.language_model.parameters()))
    model.save_pretrained(tmp_path / "changed", full=True)
    assert stored_dtypes(tmp_path / "changed")["vlm"] == {torch.float32}, "trained weights are not rounded"
    with pytest.raises(ValueError, match="pass it with full=True"):
        model.save_pretrained(tmp_path / "adapter", dtype="float16")


@pytest.mark.parametrize(
    "load", [TheWorldForConditionalGeneration.from_pretrained, AutoModelForImageTextToText.from_pretrained]
)
def test_keywords_of_from_pretrained_that_gemma_takes(
    bases: dict[str, str], tmp_path: Path, load: Callable[..., TheWorldForConditionalGeneration]
) -> None:
    build(bases).save_pretrained(tmp_path)
    model = load(tmp_path, attn_implementation="eager")
    assert model.vlm.config._attn_implementation == model.config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "eager"
    assert load(tmp_path).language_model.config._attn_implementation == "sdpa"
    for keyword in ("dtype", "torch_dtype"):
        for dtype in (torch.bfloat16, "bfloat16"):
            assert load(tmp_path, **{keyword: dtype}).dtype == torch.bfloat16
