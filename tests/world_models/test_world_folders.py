"""World folders: what is written is read back, only what is asked for is read, and what does not fit is not let in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.world_models.tiny import tiny_frames, tiny_world, tiny_world_config, tiny_world_folder
from theworld.world_models import diffusers_folder
from theworld.world_models.base import WORLD_PARTS
from theworld.world_models.cosmos_predict2 import PART_PREFIXES, CosmosPredict2

VAE = "vae/diffusion_pytorch_model.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
PROMPTS = "prompt_embeds.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world_folder(tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "world"))


def same_weights(one: CosmosPredict2, other: CosmosPredict2) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# -- written and read -------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_equal(saved: Path) -> None:
    world, loaded = tiny_world(), CosmosPredict2.from_pretrained(saved)
    assert same_weights(world, loaded)
    assert not loaded.training
    latents = world.encode(tiny_frames())
    assert torch.equal(loaded.encode(tiny_frames()), latents)
    assert torch.equal(loaded.rollout(latents, 1, seeds=[4]), world.rollout(latents, 1, seeds=[4]))


def test_nothing_is_initialised_that_is_read(saved: Path) -> None:
    """Nothing random is drawn while a folder is read, and what no file stores is as in a model built in memory."""

    class NothingDrawn(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert not any(name in str(func) for name in ("normal", "uniform", "randn", "rand.")), func
            return func(*args, **(kwargs or {}))

    with NothingDrawn():
        loaded = CosmosPredict2.from_pretrained(saved)
    built = tiny_world()
    buffers, expected = dict(loaded.named_buffers()), dict(built.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffer, expected[name]) for name, buffer in buffers.items())
    attributes = {id(value): value for module in loaded.modules() for value in vars(module).values()}
    assert not any(value.is_meta for value in attributes.values() if isinstance(value, torch.Tensor))


def test_weights_are_read_straight_to_a_device(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of a model is that of its weights, also of parts that are read later."""

    def no_move(self: CosmosPredict2, *args: object, **arguments: object) -> None:
        raise AssertionError("moved after it was read")

    monkeypatch.setattr(CosmosPredict2, "to", no_move)
    world = CosmosPredict2.from_pretrained(saved, parts=("encoder",), device="meta", dtype=torch.bfloat16)
    world.load_parts("transformer")
    assert {(tensor.device.type, tensor.dtype) for tensor in world.parameters()} == {("meta", torch.bfloat16)}
    assert all(tensor.is_meta for tensor in world.buffers())


def test_a_config_is_read_without_the_weights(folder: Path) -> None:
    for name in (VAE, TRANSFORMER, PROMPTS):
        (folder / name).unlink()
    config, written = CosmosPredict2.read_config(folder), tiny_world_config()
    assert {key: config.vae[key] for key in written.vae} == written.vae
    assert {key: config.transformer[key] for key in written.transformer} == written.transformer
    assert {key: config.scheduler[key] for key in written.scheduler} == written.scheduler
    for field in ("text_tokens", "num_inference_steps", "guidance_scale", "sigma_conditioning", "fps"):
        assert getattr(config, field) == getattr(written, field)


def test_diffusers_reads_the_folder(saved: Path) -> None:
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

    world = tiny_world()
    for cls, name in ((AutoencoderKLWan, "vae"), (CosmosTransformer3DModel, "transformer")):
        component = cls.from_pretrained(saved, subfolder=name).state_dict()
        ours = getattr(world, name).state_dict()
        assert component.keys() == ours.keys()
        assert all(torch.equal(tensor, ours[key]) for key, tensor in component.items())
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(saved, subfolder="scheduler").config.sigma_max == 80.0
    assert json.loads((saved / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKLWan"]


def test_shards_are_as_small_as_asked_and_leave_nothing_stale(folder: Path) -> None:
    world = tiny_world()
    world.save_pretrained(folder, max_shard_size=50_000)  # over the unsharded copy
    for component in ("vae", "transformer"):
        shards = sorted((folder / component).glob("*.safetensors"))
        assert len(shards) > 1
        assert all(sum(t.nbytes for t in load_file(shard).values()) <= 50_000 for shard in shards)
        assert not (folder / component / "diffusion_pytorch_model.safetensors").exists()
    assert same_weights(world, CosmosPredict2.from_pretrained(folder))
    world.save_pretrained(folder)
    assert same_weights(world, CosmosPredict2.from_pretrained(folder))
    assert sorted(p.name for p in folder.parent.iterdir()) == ["world"], "no other file is left"
    world.prompt_embeds = None
    world.save_pretrained(folder)
    assert CosmosPredict2.from_pretrained(folder).prompt_embeds is None


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world()
    assert world.transformer is not None

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(world.transformer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        world.save_pretrained(tmp_path / "world")
    assert list(tmp_path.iterdir()) == []
    tiny_world_folder(tmp_path / "world", seed=1)
    with pytest.raises(OSError, match="No space left"):
        world.save_pretrained(tmp_path / "world")
    assert same_weights(CosmosPredict2.from_pretrained(tmp_path / "world"), tiny_world(1)), "the old save stays"


def test_half_a_world_is_not_saved(saved: Path, tmp_path: Path) -> None:
    world = CosmosPredict2.from_pretrained(saved, parts=("encoder", "transformer"))
    with pytest.raises(ValueError, match=r"contains every part.*load_parts\('decoder'\)"):
        world.save_pretrained(tmp_path / "world")


def test_weights_are_cast_when_asked(saved: Path, tmp_path: Path) -> None:
    small = CosmosPredict2.from_pretrained(saved, dtype=torch.bfloat16)
    assert {tensor.dtype for name, tensor in small.named_parameters()} == {torch.bfloat16}
    small.save_pretrained(tmp_path / "world")
    assert same_weights(small, CosmosPredict2.from_pretrained(tmp_path / "world")), "stored types are kept"


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("encoder",), ("decoder",), ("encoder", "transformer"), WORLD_PARTS])
def test_only_the_asked_tensors_are_read(saved: Path, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real_open = diffusers_folder.safe_open

    class Spy:
        def __init__(self, path: Path, framework: str) -> None:
            self.file, self.component = real_open(path, framework=framework), path.parent.name

        def __enter__(self) -> Spy:
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_slice(self, key: str) -> object:
            return self.file.get_slice(key)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(f"{self.component}.{key}" if self.component in ("vae", "transformer") else key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(diffusers_folder, "safe_open", Spy)

    world = CosmosPredict2.from_pretrained(saved, parts=parts)

    prefixes = tuple(prefix for part in parts for prefix in PART_PREFIXES[part])
    expected = sorted(name for name in tiny_world().state_dict() if name.startswith(prefixes))
    assert sorted(world.state_dict()) == expected
    assert sorted(read) == [name for name in expected if not name.endswith("prompt_embeds")]


def test_the_encoder_alone_needs_no_other_file(folder: Path) -> None:
    (folder / TRANSFORMER).unlink()
    (folder / PROMPTS).unlink()
    world = CosmosPredict2.from_pretrained(folder, parts=("encoder",))
    assert torch.equal(world.encode(tiny_frames()), tiny_world().encode(tiny_frames()))


def test_parts_loaded_later_are_the_same_and_frozen(saved: Path) -> None:
    world = CosmosPredict2.from_pretrained(saved, parts=("encoder",))
    encoder = dict(world.named_parameters())
    with pytest.raises(ValueError, match=r"call load_parts\('transformer'\)"):
        world.rollout(world.encode(tiny_frames()), 1, seeds=[0])

    world.load_parts("transformer", "encoder")
    world.load_parts("decoder")

    assert world.parts == WORLD_PARTS
    assert same_weights(world, tiny_world())
    for name, parameter in world.named_parameters():
        assert (parameter is encoder[name]) if name in encoder else not parameter.requires_grad, name


# -- what does not fit ------------------------------------------------------------------------------------------------


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def rename_first(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[f"renamed.{name}"] = tensors.pop(name)


def reshape_first(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][..., :1].contiguous()


SPOIL: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (change_tensors(lambda t: t.pop(sorted(t)[-1])), "1 tensor missing"),
    "unexpected": (change_tensors(lambda t: t.update(extra=torch.zeros(1))), r"1 tensor unexpected \(extra\)"),
    "renamed": (change_tensors(rename_first), "1 tensor missing .* 1 tensor unexpected"),
    "reshaped": (change_tensors(reshape_first), "(its config requires|must be)"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]) and None, "damaged or cut short"),
    "not safetensors": (lambda path: path.write_bytes(b"<html>Not found</html>") and None, "damaged or cut short"),
}


@pytest.mark.parametrize("file", [VAE, TRANSFORMER, PROMPTS])
@pytest.mark.parametrize("how", SPOIL)
def test_spoilt_weights_are_refused(folder: Path, file: str, how: str) -> None:
    spoil, message = SPOIL[how]
    spoil(folder / file)
    with pytest.raises(ValueError, match=message) as caught:
        CosmosPredict2.from_pretrained(folder)
    assert str(Path(file).parent) in str(caught.value), "the message says where"


def test_a_spoilt_decoder_is_refused_even_when_only_the_encoder_is_read(folder: Path) -> None:
    change_tensors(lambda t: t.pop("decoder.conv_in.weight"))(folder / VAE)
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight"):
        CosmosPredict2.from_pretrained(folder, parts=("encoder",))


@pytest.mark.parametrize("file", [VAE, TRANSFORMER, "vae/config.json", "transformer/config.json"])
def test_missing_files_are_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        CosmosPredict2.from_pretrained(folder)


def test_a_missing_shard_and_a_shard_elsewhere_are_refused(folder: Path) -> None:
    tiny_world().save_pretrained(folder, max_shard_size=50_000)
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    last = sorted((folder / "vae").glob("*.safetensors"))[-1]
    last.rename(folder / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=f"{last.name} is missing"):
        CosmosPredict2.from_pretrained(folder)
    index.write_text(index.read_text().replace(last.name, "../elsewhere.safetensors"))
    with pytest.raises(ValueError, match="outside its own folder"):
        CosmosPredict2.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"num_steps": 3}'])
def test_a_broken_rollout_config_is_refused(folder: Path, content: str) -> None:
    (folder / "rollout_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"rollout_config\.json"):
        CosmosPredict2.read_config(folder)


def test_without_prompts_a_rollout_says_what_to_do(folder: Path) -> None:
    """The published repositories: no prompt_embeds.safetensors, no rollout_config.json."""
    (folder / PROMPTS).unlink()
    (folder / "rollout_config.json").unlink()
    world = CosmosPredict2.from_pretrained(folder)
    assert world.config.text_tokens == 512
    latents = world.encode(tiny_frames())
    with pytest.raises(ValueError, match=r"has no prompt_embeds\.safetensors.*\(512, 8\)"):
        world.rollout(latents, 1, seeds=[0])
    prompt = torch.zeros(512, 8)
    with pytest.raises(ValueError, match="pass negative_prompt_embeds"):
        world.rollout(latents, 1, seeds=[0], prompt_embeds=prompt)
    assert world.rollout(latents, 1, seeds=[0], prompt_embeds=prompt, guidance_scale=1.0).isfinite().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no folder nowhere"),
        ("./nowhere/here", "no folder ./nowhere/here"),
        ("some one/world", "not a Hugging Face repository id"),
        ("someone/no-such-world", "not in the Hugging Face cache. Hub access is disabled"),
    ],
)
def test_a_world_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosmosPredict2.from_pretrained(name)
