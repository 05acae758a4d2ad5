"""Claims about loading: published layouts load through the user's own calls, and nothing is missing or left over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.random_weights import KEY_NAMES
from tests.published import cache_as_hub, published_cosmos, published_gemma
from tests.world_models.tiny import TINY_SIZE
from theworld import TheWorld
from theworld.model.loading import load_gemma
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.spec import resolve_model

QUESTION = "Which bin will the ball land in?"
COMMITS = {"gemma": "a" * 40, "cosmos": "b" * 40, "ours": "c" * 40}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_gemma(tmp_path_factory.mktemp("published") / "gemma")


@pytest.fixture(scope="module")
def cosmos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_cosmos(tmp_path_factory.mktemp("published") / "cosmos")


def build(gemma: Path | str, cosmos: Path | str, **arguments) -> TheWorld:
    values = {"max_world_steps": 2, "world_image_size": TINY_SIZE, "device": "cpu", **arguments}
    return TheWorld(gemma, cosmos_model_name=str(cosmos), **values)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


def shake(model: TheWorld) -> None:
    """Gives everything that learns other values, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def logits(model: TheWorld) -> torch.Tensor:
    with torch.no_grad():
        return model.forward(pixels(), QUESTION, num_world_steps=0).logits


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal up to the last bits of a sum, which depend on where in memory a weight lies."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ the published layout


def test_a_key_of_a_newer_transformers_is_told_and_carried_along(
    gemma: Path, cosmos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [message for message in caplog.messages if "does not read" in message]

    published = logits(build(gemma, cosmos))
    TheWorld("nano", device="cpu")
    assert said() == [], "neither the published layout nor nano has such a key"
    newer = shutil.copytree(gemma, tmp_path / "newer")
    config = json.loads((newer / "config.json").read_text())
    config["text_config"]["attention_style"] = "plain"
    (newer / "config.json").write_text(json.dumps({**config, "brand_new": {"deep": [1]}}))
    assert torch.equal(logits(build(newer, cosmos)), published)
    assert "brand_new, text_config.attention_style. They are ignored" in said()[0]
    build(newer, cosmos).save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    TheWorld.from_pretrained(tmp_path / "ours", device="cpu")
    (tmp_path / "ours" / "config.json").write_text(json.dumps({**config, "brand_new": 1}))
    with pytest.raises(ValueError, match="no key 'brand_new'; choose one of"):  # in ours it can only be a mistake
        TheWorld.from_pretrained(tmp_path / "ours", device="cpu")


def test_both_published_layouts_load_through_the_facade(gemma: Path, cosmos: Path) -> None:
    assert len(list(gemma.glob("model-*.safetensors"))) == 2
    assert len(list((cosmos / "transformer").glob("*.safetensors"))) > 1
    model = build(gemma, cosmos, num_world_steps=1)
    assert model.config.vlm_config.text_config.rope_parameters["full_attention"]["factor"] == 8.0
    assert model.config.vlm_config.text_config.layer_types[-1] == "full_attention"
    assert isinstance(model.generate(pixels(), QUESTION, 3, num_world_steps=0), str)
    stored = {}
    for file in gemma.glob("model-*.safetensors"):
        stored.update(load_file(file))
    embeddings = model.model.get_input_embeddings().weight
    assert torch.equal(embeddings, stored["language_model.model.embed_tokens.weight"].float())
    assert model.model.vlm.lm_head.weight is embeddings, "tied"
    patches = model.model.vlm.get_parameter("model.vision_tower.embeddings.patch_embedding.weight")
    published = stored["vision_tower.vision_model.embeddings.patch_embedding.weight"]
    assert torch.equal(patches, published.float())
    assert {p.dtype for p in build(gemma, cosmos, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("keys", KEY_NAMES)
def test_key_names_of_every_time_give_the_same_weights(gemma: Path, tmp_path: Path, keys: str) -> None:
    expected = load_gemma(str(gemma)).state_dict()
    loaded = load_gemma(str(published_gemma(tmp_path / "gemma", keys, shards=3))).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_head_that_is_stored_beside_the_embeddings_it_is_tied_to(gemma: Path, tmp_path: Path) -> None:
    embeddings = load_gemma(str(gemma)).get_input_embeddings().weight.detach()
    folder = published_gemma(tmp_path / "gemma", **{"language_model.lm_head.weight": embeddings.clone()})
    model = load_gemma(str(folder))
    assert model.lm_head.weight is model.get_input_embeddings().weight


NORM, FIRST = "language_model.model.norm.weight", "language_model.model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, r"1 tensor missing \(model.language_model.norm.weight\)\."),
        ({NORM: None, FIRST: None}, r"2 tensors missing \(model.language_model.layers.0.mlp.up_proj.weight, "),
        ({"language_model.model.layers.3.mlp.up_proj.weight": torch.zeros(48, 32)}, r"config: 1 tensor unexpected"),
        ({"vision_tower.vision_model.head.probe": torch.zeros(1)}, r"1 tensor unexpected \(.*head.probe\)\."),
        ({NORM: torch.zeros(31)}, r"model.language_model.norm.weight is \(31,\) in the file and \(32,\) by the config"),
        ({"language_model.model.embed_tokens.weight": None}, r"1 tensor missing \(.*embed_tokens.weight\)"),
    ],
)
def test_a_gemma_with_other_tensors_is_refused(
    tmp_path: Path, cosmos: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = published_gemma(tmp_path / "gemma", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        build(folder, cosmos)
    assert str(folder) in str(caught.value)


def test_a_gemma_with_damaged_or_missing_files_is_refused(tmp_path: Path, cosmos: Path) -> None:
    folder = published_gemma(tmp_path / "gemma")
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        build(folder, cosmos)
    shard.unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*model-00002-of-00002"):
        build(folder, cosmos)


def test_another_kind_of_model_is_refused(tmp_path: Path, cosmos: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    with pytest.raises(
        ValueError,
        match="is a 'gemma3_text' model; TheWorld reads its own models, and fuses a Gemma 3 that reads images",
    ):
        build(tmp_path, cosmos)


def test_a_cosmos_with_a_tensor_too_few_is_refused(gemma: Path, tmp_path: Path) -> None:
    folder = published_cosmos(tmp_path / "cosmos")
    index = json.loads((folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    file = folder / "vae" / index["weight_map"]["encoder.conv_in.bias"]
    tensors = load_file(file)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 tensor missing \(encoder.conv_in.bias\)"):
        build(gemma, folder)


# ---------------------------------------------------------------------------------------------------- trained models


@pytest.mark.parametrize(
    "name", ["checkpoint-1000", "checkpoint-1000/pytorch_model.bin", "checkpoint-1000/model.safetensors"]
)
def test_a_checkpoint_on_published_bases(gemma: Path, cosmos: Path, tmp_path: Path, name: str) -> None:
    model = build(gemma, cosmos, lora=4)
    shake(model)
    folder = tmp_path / "checkpoint-1000"
    model.save_pretrained(folder)
    torch.save(dict(model.model.adapter_tensors()), folder / "pytorch_model.bin")
    loaded = TheWorld.from_pretrained(tmp_path, checkpoint_name=name, device="cpu")
    same(logits(loaded), logits(model))


def test_the_auto_classes_on_published_bases(gemma: Path, cosmos: Path, tmp_path: Path) -> None:
    model = build(gemma, cosmos)
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    inputs = model.prepare(pixels(), QUESTION)
    prompt = model.processor.batch_decode(model.prepare(None, QUESTION)["input_ids"])[0]
    assert AutoProcessor.from_pretrained(tmp_path)(text=prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        same(loaded(**inputs).logits, model.model(**inputs).logits)


def test_a_full_export_holds_trained_bases_once(gemma: Path, cosmos: Path, tmp_path: Path) -> None:
    model = build(gemma, cosmos, freeze_gemma_vision=False, freeze_cosmos_vae=False)
    shake(model)
    model.save_pretrained(tmp_path / "run" / "full", full=True)
    loaded = TheWorld.from_pretrained(tmp_path / "run", checkpoint_name="full", device="cpu")
    assert loaded.config.trained_parts == ["projector"]
    same(logits(loaded), logits(model))
    ours = load_file(tmp_path / "run" / "full" / "model.safetensors")
    assert all(name.startswith("projector.") for name in ours)


def attacked(path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"projector.row": Attack()}, path)


def test_adapters_that_were_damaged_or_tampered_with_are_refused(gemma: Path, cosmos: Path, tmp_path: Path) -> None:
    model = build(gemma, cosmos)
    shake(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["projector.row"]["data_offsets"] = header["projector.column"]["data_offsets"]
    swapped = json.dumps(header).encode().ljust(length)
    damaged = {
        "empty": b"",
        "cut inside the header": whole[:40],
        "cut inside the data": whole[:-1],
        "a header longer than the file": (2**40).to_bytes(8, "little") + whole[8:],
        "two names for the same bytes": len(swapped).to_bytes(8, "little") + swapped + whole[8 + length :],
        "no JSON": whole[:8] + b"\0" * length + whole[8 + length :],
    }
    for how, content in damaged.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short") as caught:
            TheWorld.from_pretrained(tmp_path, device="cpu")
        assert "\n" not in str(caught.value), how
    tensors = {name: tensor.detach().clone() for name, tensor in model.model.adapter_tensors().items()}
    save_file({**tensors, "projector.row": tensors["projector.row"].to(torch.int64)}, file)
    with pytest.raises(ValueError, match=r"projector.row is torch.int64 there and torch.float32 here"):
        TheWorld.from_pretrained(tmp_path, device="cpu")
    attacked(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="contains more than tensors, or is not a checkpoint; it was not loaded"):
        TheWorld.from_pretrained(tmp_path, checkpoint_name="pytorch_model.bin", device="cpu")
    torch.save(["no", "names"], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a checkpoint of named tensors"):
        TheWorld.from_pretrained(tmp_path, checkpoint_name="pytorch_model.bin", device="cpu")


# ----------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub whose repositories are in the local cache, as after a first download; there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache_as_hub(published_gemma(tmp_path / "gemma"), "someone/gemma", tmp_path / "hub", COMMITS["gemma"])
    cache_as_hub(published_cosmos(tmp_path / "cosmos"), "someone/cosmos", tmp_path / "hub", COMMITS["cosmos"])
    return tmp_path / "hub"


def test_commits_are_recorded_and_kept_to(hub: Path, tmp_path: Path) -> None:
    model = build("someone/gemma", "someone/cosmos")
    shake(model)
    before = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert (saved["vlm_name_or_path"], saved["vlm_revision"]) == ("someone/gemma", COMMITS["gemma"])
    assert (saved["world_name_or_path"], saved["world_revision"]) == ("someone/cosmos", COMMITS["cosmos"])
    # both repositories move on; the adapter stays with what it was trained on
    cache_as_hub(published_gemma(tmp_path / "gemma", seed=1), "someone/gemma", hub, "d" * 40)
    cache_as_hub(published_cosmos(tmp_path / "cosmos", seed=1), "someone/cosmos", hub, "e" * 40)
    assert build("someone/gemma", "someone/cosmos").config.vlm_revision == "d" * 40
    assert build("someone/gemma", "someone/cosmos", vlm_revision=COMMITS["gemma"]).config.world_revision == "e" * 40
    same(logits(TheWorld.from_pretrained(tmp_path / "adapter", device="cpu")), before)


def test_an_adapter_and_a_full_export_from_the_hub(hub: Path, tmp_path: Path) -> None:
    model = build("someone/gemma", "someone/cosmos")
    shake(model)
    model.save_pretrained(tmp_path / "ours")
    cache_as_hub(tmp_path / "ours", "someone/ours", hub, COMMITS["ours"])
    model.save_pretrained(tmp_path / "full", full=True)
    cache_as_hub(tmp_path / "full", "someone/full", hub, COMMITS["ours"])
    for name in ("someone/ours", "someone/full"):
        loaded = TheWorld.from_pretrained(name, revision="main", device="cpu")
        same(logits(loaded), logits(model))
        assert AutoProcessor.from_pretrained(name).config.world_token_id == model.config.world_token_id
    loaded.save_pretrained(tmp_path / "tuned further")  # its bases are found from here, too
    same(logits(TheWorld.from_pretrained(tmp_path / "tuned further", device="cpu")), logits(model))
    with pytest.raises(ValueError, match=r"someone/nothing is not a local folder.*Hub access is disabled"):
        TheWorld.from_pretrained("someone/nothing")


# -------------------------------------------------------------------------------------------------------- device_map


def test_a_device_map_gives_the_same_answers(gemma: Path, cosmos: Path, tmp_path: Path) -> None:
    """Part of the language model on disk: accelerate's dispatch, as between GPUs, on a machine that has none."""
    model = build(gemma, cosmos)
    shake(model)
    model.save_pretrained(tmp_path / "adapter")
    whole = load_gemma(str(gemma))
    names = [name for name, _ in whole.named_modules() if name.count(".") == 1 and "language_model" not in name]
    names += [
        f"model.language_model.{name}" for name, _ in whole.model.language_model.named_children() if name != "layers"
    ]
    names += [f"model.language_model.layers.{i}" for i in (0, 2)]
    device_map = {**dict.fromkeys(names, "cpu"), "lm_head": "cpu", "model.language_model.layers.1": "disk"}
    placed = TheWorldForConditionalGeneration.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32, device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    assert placed.hf_device_map["model.language_model.layers.1"] == "disk"
    assert placed.language_model.layers[1].mlp.up_proj.weight.is_meta
    inputs = model.prepare(pixels(), QUESTION)
    with torch.no_grad():
        torch.testing.assert_close(placed(**inputs).logits, model.model(**inputs).logits, atol=1e-5, rtol=0)
    device_map["model.language_model.embed_tokens"] = device_map["lm_head"] = "disk"
    with pytest.raises(ValueError, match=r"keep model\.language_model\.embed_tokens on a device"):
        TheWorldForConditionalGeneration.from_pretrained(
            tmp_path / "adapter", device_map=device_map, offload_folder=str(tmp_path / "offload")
        )


def test_the_world_lies_where_the_embeddings_lie(gemma: Path, cosmos: Path) -> None:
    model = build(gemma, cosmos, device=None, device_map={"": "meta"}, num_world_steps=1, lora=2)
    places = {name.split(".")[0]: parameter.device.type for name, parameter in model.model.named_parameters()}
    assert places == {"vlm": "meta", "world": "meta", "projector": "meta"}
    with pytest.raises(ValueError, match="device and device_map were both given"):
        build(gemma, cosmos, device_map="auto")


def test_weights_read_straight_to_a_device_are_the_same(gemma: Path, cosmos: Path) -> None:
    """What a GPU's models are loaded with; here the device is the CPU, and the model built plainly is the reference."""
    spec = resolve_model(str(gemma), world_model=str(cosmos), max_world_steps=2, world_image_size=TINY_SIZE)
    plain, straight = spec.load(), spec.load(device=torch.device("cpu"))
    expected = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    found = {**dict(straight.named_parameters()), **dict(straight.named_buffers())}
    assert found.keys() == expected.keys()
    random = ("projector.",)  # of a new fusion
    assert all(torch.equal(found[name], expected[name]) for name in expected if not name.startswith(random))
    assert "hf_device_map" not in vars(straight), "Trainer may move it"


def test_bases_named_by_relative_paths_are_found_from_anywhere(
    gemma: Path, cosmos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gemma").symlink_to(gemma)
    (tmp_path / "weights" / "cosmos").symlink_to(cosmos)
    monkeypatch.chdir(tmp_path)
    build("weights/gemma", "weights/cosmos").save_pretrained("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = TheWorld.from_pretrained("../saved", device="cpu")
    assert again.config.vlm_name_or_path == str(tmp_path / "weights" / "gemma")
    assert again.config.world_name_or_path == str(tmp_path / "weights" / "cosmos")


def test_a_world_model_in_the_place_of_a_gemma_is_told(gemma: Path, cosmos: Path) -> None:
    with pytest.raises(ValueError, match=r"pass it as the world model \(cosmos_model_name\) of a Gemma 3"):
        build(cosmos, cosmos)
    with pytest.raises(ValueError, match="so this is not a world model; use a Cosmos-Predict2"):
        build(gemma, gemma)
