"""Each key of a config takes effect; a key that is not used fails here."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from transformers.models.gemma3.modeling_gemma3 import Gemma3Model

from tests.training.conftest import image, load, records
from tests.training.test_trainer import new_trainer
from theworld.datasets.samples import TheWorldDataset
from theworld.datasets.shards import ImageShards
from theworld.storage.adapters import read_tensors
from theworld.storage.hub import resolve
from theworld.training import dataset_loading, recipe
from theworld.training.checkpointing import checkpoints_in, find_checkpoint
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import build_model, describe, frozen_dtype, trainable_parts, world_parts
from theworld.training.muon import MuonWithAdamW
from theworld.training.trainer import TheWorldTrainer
from theworld.world_models.cosmos_predict2 import CosmosPredict2

Settings = Callable[..., TrainingConfig]
FIELDS = {field.name for field in dataclasses.fields(TrainingConfig)} - {"trainer_arguments"}
# keys that are read through properties or methods of the config
THROUGH = {
    "autocast": ("mixed_precision",),
    "steps_shares": ("world_steps_mix",),
    "move_token": ("hf_token",),
    "trackers": ("log_to_tensorboard", "log_to_wandb"),
}


class Watched(TrainingConfig):
    """Records which of its keys other modules read."""

    read: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        reader = sys._getframe(1).f_globals["__name__"]
        if reader not in ("theworld.training.config", "dataclasses", "copy") and (name in FIELDS or name in THROUGH):
            Watched.read.update(THROUGH.get(name, (name,)))
        return super().__getattribute__(name)


def test_every_key_is_used(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.read = set()
    jsonl = write_jsonl(tmp_path)
    config = settings(dataset_name="jsonl", train_dataset_path=jsonl, eval_dataset_path=jsonl, do_eval=True, lora=2)
    config.optimizer, config.latent_cache = "muon", str(tmp_path / "cache")
    recipe.train(Watched.from_dict(config.to_dict()))
    trained = settings(model_name=config.output_dir, output_dir=str(tmp_path / "second"), freeze_lora=True)
    recipe.train(Watched.from_dict(trained.to_dict()), load())
    hub = datasets.Dataset.from_dict({"text": ["What?"], "label": ["a cat"], "url": ["none"]})
    monkeypatch.setattr(dataset_loading, "load_split", lambda *arguments, **keywords: hub)
    mapped = settings(image_key="", do_eval=True)
    dataset_loading.load_hub(Watched.from_dict(mapped.to_dict()))
    dataset_loading.load_datacomp(Watched.from_dict({**mapped.to_dict(), "num_samples": 1}))
    monkeypatch.setattr(dataset_loading, "load_split", lambda *arguments, **keywords: hub.to_iterable_dataset())
    streamed = settings(image_key="", streaming=True, output_dir=str(tmp_path / "stream"), max_steps=1)
    recipe.train(Watched.from_dict(streamed.to_dict()), dataset_loading.load_hub)
    assert FIELDS - Watched.read == set()


def write_jsonl(folder: Path) -> str:
    Image.fromarray(image(0)).save(folder / "a.png")
    file = folder / "chats.jsonl"
    line = json.dumps({"image": "a.png", "text": "Which bin will the ball land in?", "label": "left"})
    file.write_text(f"{line}\n" * 4)
    return str(file)


def arguments(name: str) -> Callable[[TrainingConfig], Any]:
    return lambda config: getattr(recipe.training_arguments(config), name)


def draws(name: str) -> Callable[[TrainingConfig], Any]:
    return lambda config: getattr(recipe.new_collator(config, describe(config)).sampling, name)


def model_config(name: str) -> Callable[[TrainingConfig], Any]:
    return lambda config: getattr(describe(config).config, name)


def world_config(name: str) -> Callable[[TrainingConfig], Any]:
    return lambda config: getattr(describe(config).config.world_config, name)


def parts(config: TrainingConfig) -> Any:
    return trainable_parts(config, describe(config).config)


def is_4bit(model: Any) -> bool:
    return type(model.language_model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def environment(name: str) -> Callable[[TrainingConfig], Any]:
    def read(config: TrainingConfig) -> Any:
        recipe.training_arguments(config)
        config.move_token()
        return os.environ.get(name)

    return read


# key -> (another value, what it changes, the result)
REACHES: dict[str, tuple[Any, Callable[[TrainingConfig], Any], Any]] = {
    "num_world_steps": (3, model_config("num_world_steps"), 3),
    "max_world_steps": (3, model_config("max_world_steps"), 3),
    "max_past_steps": (2, model_config("max_past_steps"), 2),
    "freeze_gemma_vision": (False, parts, ("projector", "vision")),
    "freeze_gemma_language": (False, parts, ("projector", "language")),
    "freeze_cosmos_vae": (False, parts, ("projector", "vae_encoder")),
    "projector": ("mlp", model_config("projector"), "mlp"),
    "projector_hidden_size": (8, model_config("projector_hidden_size"), 8),
    "resampler_tokens": (5, model_config("resampler_tokens"), 5),
    "spatial_merge": (2, model_config("spatial_merge"), 2),
    "world_image_size": (64, model_config("world_image_size"), 64),
    "world_images": ("all", model_config("world_images"), "all"),
    "lora": (2, parts, ("projector", "lora")),
    "quantization": ("4bit", lambda config: is_4bit(build_model(config, describe(config))), True),
    "num_inference_steps": (9, world_config("num_inference_steps"), 9),
    "guidance_scale": (1.5, world_config("guidance_scale"), 1.5),
    "fast_path": ("off", lambda config: build_model(config, describe(config)).world.fast_path, "off"),
    "guidance_interval": ([0, 0.5], world_config("guidance_interval"), [0, 0.5]),
    "world_seed": (5, draws("first_seed"), 5),
    "futures_per_image": (3, draws("futures"), 3),
    "true_futures": (0.25, draws("true_futures"), 0.25),
    "world_steps_mix": ({"1": 1}, draws("steps_shares"), {1: 1.0}),
    "world_dropout": (0.25, draws("world_dropout"), 0.25),
    "image_dropout": (0.25, draws("image_dropout"), 0.25),
    "latent_cache": ("cache", lambda config: world_parts(config, describe(config).config), ()),
    "constant_world": (True, draws("constant_world"), True),
    "freeze_projector": (True, parts, ("lora",)),
    "learning_rate": (0.5, arguments("learning_rate"), 0.5),
    "lr_scheduler": ("cosine", arguments("lr_scheduler_type"), "cosine"),
    "warmup_steps": (7, arguments("warmup_steps"), 7),
    "weight_decay": (0.5, arguments("weight_decay"), 0.5),
    "adam_beta2": (0.5, arguments("adam_beta2"), 0.5),
    "max_grad_norm": (0.5, arguments("max_grad_norm"), 0.5),
    "batch_size": (7, arguments("per_device_train_batch_size"), 7),
    "gradient_accumulation_steps": (7, arguments("gradient_accumulation_steps"), 7),
    "num_epochs": (7, arguments("num_train_epochs"), 7),
    "max_steps": (7, arguments("max_steps"), 7),
    "mixed_precision": ("bf16", frozen_dtype, torch.bfloat16),
    "seed": (7, draws("seed"), 7),
    "output_dir": ("elsewhere", arguments("output_dir"), "elsewhere"),
    "save_steps": (7, arguments("save_steps"), 7),
    "do_eval": (True, arguments("eval_strategy"), "steps"),
    "eval_steps": (7, arguments("eval_steps"), 7),
    "eval_batch_size": (7, arguments("per_device_eval_batch_size"), 7),
    "logging_steps": (7, arguments("logging_steps"), 7),
    "log_to_tensorboard": (True, arguments("report_to"), ["tensorboard"]),
    "log_to_wandb": (True, arguments("report_to"), ["wandb"]),
    "wandb_project": ("mine", environment("WANDB_PROJECT"), "mine"),
    "wandb_run_name": ("mine", arguments("run_name"), "mine"),
    "num_workers": (3, arguments("dataloader_num_workers"), 3),
    "hf_token": ("hf_secret", environment("HF_TOKEN"), "hf_secret"),
}
WITH: dict[str, dict[str, Any]] = {  # other keys that a key needs
    "projector_hidden_size": {"projector": "mlp"},
    "resampler_tokens": {"projector": "resampler"},
    "freeze_projector": {"lora": 2},
}


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[pytest.mark.quantization] * (key == "quantization")) for key in REACHES]
)
def test_a_key_takes_effect(settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "before")
    monkeypatch.setenv("WANDB_PROJECT", "before")
    value, reach, expected = REACHES[key]
    assert reach(settings(**WITH.get(key, {}))) != expected
    assert reach(settings(**{**WITH.get(key, {}), key: value})) == expected


# tests of the remaining keys
ELSEWHERE = {
    "vision_cache": "test_cached_image_features_train_as_pixels_do",
    "fast_path": "test_the_fast_path_needs_a_gpu",
    "model_name": "test_the_bases_are_loaded_by_name",
    "cosmos_model_name": "test_the_bases_are_loaded_by_name",
    "enable_world": "test_a_control_without_world",
    "reset_projector": "test_a_projector_is_reinitialised",
    "projector_positions": "test_a_projector_is_reinitialised",
    "freeze_lora": "test_a_lora_can_be_frozen",
    "world_prompt": "test_the_prompt_reaches_the_world_model",
    "use_gradient_checkpointing": "test_gradient_checkpointing_saves_memory_and_changes_nothing",
    "latent_batch_size": "test_a_cache_is_filled_in_batches",
    "optimizer": "test_muon_and_its_rate",
    "muon_learning_rate": "test_muon_and_its_rate",
    "save_total_limit": "test_old_checkpoints_are_removed",
    "resume_from_checkpoint": "test_a_checkpoint_to_resume_from",
    "num_eval_samples": "test_limits_on_samples",
    "num_samples": "test_limits_on_samples",
    "max_seq_length": "test_limits_on_samples",
    "shown_samples": "test_limits_on_samples",
    "streaming": "test_a_stream_is_shuffled_and_read_in_parts",
    "shuffle_buffer_size": "test_a_stream_is_shuffled_and_read_in_parts",
    "stream_parts": "test_a_stream_is_shuffled_and_read_in_parts",
    "dataset_name": "test_the_dataset_is_loaded_by_name",
    "dataset_options": "test_the_dataset_is_loaded_by_name",
    "train_dataset_path": "test_the_dataset_is_loaded_by_name",
    "eval_dataset_path": "test_the_dataset_is_loaded_by_name",
    "push_to_hub": "test_uploads_are_those_of_the_config",
    "hub_model_id": "test_uploads_are_those_of_the_config",
    "hub_strategy": "test_uploads_are_those_of_the_config",
    "hub_private_repo": "test_uploads_are_those_of_the_config",
    "train_split": "test_columns_and_splits_of_a_hub_dataset",
    "eval_split": "test_columns_and_splits_of_a_hub_dataset",
    "image_key": "test_columns_and_splits_of_a_hub_dataset",
    "text_key": "test_columns_and_splits_of_a_hub_dataset",
    "label_key": "test_columns_and_splits_of_a_hub_dataset",
    "question_template": "test_columns_and_splits_of_a_hub_dataset",
}


def test_every_key_has_a_test() -> None:
    assert set(REACHES) | set(ELSEWHERE) == FIELDS
    assert all(name in globals() for name in ELSEWHERE.values())


def test_the_bases_are_loaded_by_name(settings: Settings, bases: dict[str, str]) -> None:
    model = build_model(settings(), describe(settings()))
    assert model.config.vlm_name_or_path == bases["vlm_name_or_path"]
    assert model.config.world_name_or_path == bases["world_name_or_path"]
    for key in ("model_name", "cosmos_model_name"):
        with pytest.raises(ValueError, match="nowhere"):
            describe(settings(**{key: "nowhere"}))


def test_a_control_without_world(settings: Settings) -> None:
    config = settings(enable_world=False, lora=2)
    folder = recipe.train(config, load())
    assert json.loads((folder / "config.json").read_text())["trained_parts"] == ["lora"]
    with pytest.raises(ValueError, match="No trainable parameters"):
        recipe.train(settings(enable_world=False, output_dir=config.output_dir + "-none"), load())
    fused = recipe.train(settings(output_dir=config.output_dir + "-fused"), load())
    later = settings(model_name=str(fused), enable_world=False, lora=2)
    assert trainable_parts(later, describe(later).config) == ("lora",), "also for a trained model"
    assert build_model(later, describe(later)).world is None


def test_a_projector_is_reinitialised(settings: Settings) -> None:
    folder = str(recipe.train(settings(), load()))
    kept, fresh, placed = (
        build_model(config, describe(config)).projector
        for config in (
            settings(model_name=folder),
            settings(model_name=folder, reset_projector=True),
            settings(model_name=folder, reset_projector=True, projector_positions="sinusoidal"),
        )
    )
    assert kept.row.any()
    assert not fresh.row.any()
    assert placed.row.square().mean().sqrt().item() == pytest.approx(0.7, abs=0.05)
    assert not torch.equal(kept.projection.weight, fresh.projection.weight)
    assert torch.equal(fresh.projection.weight, placed.projection.weight)


def test_a_reinitialised_projector_is_far_from_that_of_nano() -> None:
    """nano's projector is still close to its own initial weights (seed 0): starting there would be no new start."""
    name = "projector.projection.2.weight"
    shipped = read_tensors(resolve("nano"))[name].float()
    for seed in (0, 1):
        config = TrainingConfig(model_name="nano", reset_projector=True, latent_cache="not used", seed=seed)
        drawn = build_model(config, describe(config))
        assert abs(cosine(shipped, drawn.get_parameter(name))) < 0.1
    fusion = TrainingConfig(
        model_name="nano/gemma", cosmos_model_name="nano/cosmos", projector="mlp", latent_cache="none"
    )
    assert abs(cosine(shipped, build_model(fusion, describe(fusion)).get_parameter(name))) < 0.1
    drawn.projector.reset_parameters(1.0, seed=0)
    assert cosine(shipped, drawn.get_parameter(name)) > 0.9


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.detach().flatten(), dim=0).item()


def test_a_lora_can_be_frozen(settings: Settings) -> None:
    folder = str(recipe.train(settings(lora=2), load()))
    config = settings(model_name=folder)
    assert trainable_parts(config, describe(config).config) == ("projector", "lora")
    frozen = settings(model_name=folder, freeze_lora=True)
    assert trainable_parts(frozen, describe(frozen).config) == ("projector",)


def test_the_prompt_reaches_the_world_model(settings: Settings) -> None:
    config = settings(world_prompt="it falls", num_world_steps=1)
    collator = recipe.new_collator(config, describe(config))
    sample = TheWorldDataset(records(1))[0]
    assert [request.prompt for request in collator.all_requests(sample)] == ["it falls"]


def test_gradient_checkpointing_saves_memory_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    kept, weights = [], []
    for checkpointing in (False, True):
        config = settings(
            lora=2, max_steps=1, use_gradient_checkpointing=checkpointing, output_dir=str(tmp_path / str(checkpointing))
        )
        bytes_kept = []

        def pack(tensor: torch.Tensor, bytes_kept: list[int] = bytes_kept) -> torch.Tensor:
            bytes_kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            folder = recipe.train(config, load())
        kept.append(sum(bytes_kept))
        weights.append(read_tensors(str(folder)))
    assert kept[1] < kept[0] / 2
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-6, rtol=1e-5)


def test_old_checkpoints_are_removed(settings: Settings) -> None:
    config = settings(save_steps=1, max_steps=4, save_total_limit=2)
    recipe.train(config, load())
    assert [path.name for path in checkpoints_in(config.output_dir)] == ["checkpoint-3", "checkpoint-4"]


def test_a_checkpoint_to_resume_from(settings: Settings) -> None:
    config = settings(save_steps=1, max_steps=1)
    recipe.train(config, load())
    found = find_checkpoint(settings(resume_from_checkpoint=str(Path(config.output_dir) / "checkpoint-1")))
    assert found == Path(config.output_dir) / "checkpoint-1"
    assert find_checkpoint(settings()) is None


def test_a_cache_is_filled_in_batches(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = CosmosPredict2.encode

    def counted(self: CosmosPredict2, frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(CosmosPredict2, "encode", counted)
    recipe.fill(settings(latent_cache=str(tmp_path / "cache"), latent_batch_size=3), load())
    assert max(sizes) == 3


def test_muon_and_its_rate(settings: Settings) -> None:
    rates = {}
    for optimizer in ("adamw", "muon"):
        config = settings(lora=2, optimizer=optimizer, muon_learning_rate=0.5, learning_rate=0.25, warmup_steps=0)
        described = describe(config)
        collator = recipe.new_collator(config, described)
        training, _ = recipe.index_samples(config, load(), collator)
        model = build_model(config, described)
        trainer = TheWorldTrainer(model, config, collator, training)
        made = trainer.create_optimizer()
        assert isinstance(made, MuonWithAdamW) == (optimizer == "muon")
        rates[optimizer] = {group["lr"] for group in made.param_groups}
    assert rates == {"adamw": {0.25}, "muon": {0.25, 0.5}}


def test_limits_on_samples(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    chats = records(5)
    chats[1]["text"] = "Which bin will the ball land in? " * 20
    both = lambda config: (chats, chats)  # noqa: E731
    config = settings(num_samples=4, num_eval_samples=3, shown_samples=2, do_eval=True, max_seq_length=60)
    placed, held_out = recipe.index_samples(config, both, recipe.new_collator(config, describe(config)))
    assert (placed.kept, held_out.kept) == ([0, 2, 3], [0, 2])
    assert len(recipe.shown_samples(config, held_out)) == 2
    assert "1 of 4 training samples have more than 60 text tokens and are left out" in caplog.text
    config = settings(max_seq_length=3)
    with pytest.raises(
        ValueError, match=r"None of the 5 training samples has at most 3 text tokens .* increase max_seq"
    ):
        recipe.index_samples(config, both, recipe.new_collator(config, describe(config)))


def test_a_stream_is_shuffled_and_read_in_parts(settings: Settings, tmp_path: Path) -> None:
    rows = [{"text": f"Question {number}?", "label": "yes"} for number in range(12)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def load(**changes: Any) -> tuple[TrainingConfig, list[list[str]]]:
        values = {"dataset_name": str(tmp_path / "data"), "image_key": "", "streaming": True, "max_steps": 1}
        config = settings(**{**values, **changes})
        stream, _ = dataset_loading.load_datasets(config)
        return config, [sample.messages[0]["content"][0]["text"] for sample in stream]

    questions = [row["text"] for row in rows]
    _, found = load(shuffle_buffer_size=0)
    assert found == questions
    _, shuffled = load(shuffle_buffer_size=4)
    assert sorted(shuffled[:4]) == sorted(questions[:4]) != shuffled[:4]
    for parts, expected in ((None, 2), (3, 3)):
        config, _ = load(stream_parts=parts, num_workers=2, output_dir=str(tmp_path / str(parts)))
        recipe.train(config)
        state = json.loads((tmp_path / str(parts) / "checkpoint-1" / "stream.json").read_text())
        assert (state["num_parts"], state["batches"], list(state["positions"])) == (expected, 1, ["0"])


def test_the_dataset_is_loaded_by_name(settings: Settings, tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path)
    named = {"dataset_name": "jsonl", "train_dataset_path": jsonl}
    train, evaluation = dataset_loading.load_datasets(settings(**named))
    assert (len(train), evaluation) == (4, None)
    assert len(dataset_loading.load_datasets(settings(dataset_name=jsonl))[0]) == 4
    train, evaluation = dataset_loading.load_datasets(settings(**named, eval_dataset_path=jsonl, do_eval=True))
    assert len(evaluation) == 4
    options = {"scenes_per_family": 1, "chats_per_scene": 2, "eval_scenes_per_family": 1}
    train, evaluation = dataset_loading.load_datasets(
        settings(dataset_name="physics", dataset_options=options, do_eval=True)
    )
    assert (len(train), len(evaluation)) == (6, 3)
    said = r"has 'scenes_family', but physics takes scenes_per_family, .*; did you mean 'scenes_per_family'"
    with pytest.raises(ValueError, match=said):
        dataset_loading.load_datasets(settings(dataset_name="physics", dataset_options={"scenes_family": 1}))
    with pytest.raises(
        ValueError, match=r"dataset_options has 'scenes_per_family', but jsonl takes no options; remove"
    ):
        dataset_loading.load_datasets(settings(**named, dataset_options={"scenes_per_family": 1}))
    with pytest.raises(ValueError, match="Unknown dataset 'phsyics'; did you mean 'physics'"):
        dataset_loading.load_datasets(settings(dataset_name="phsyics"))
    with pytest.raises(ValueError, match="needs train_dataset_path"):
        dataset_loading.load_datasets(settings(dataset_name="jsonl"))
    with pytest.raises(ValueError, match="do_eval needs eval_dataset_path"):
        dataset_loading.load_datasets(settings(**named, do_eval=True))
    own = tmp_path / "mine.py"
    own.write_text("def load_datasets(config):\n    return [{'text': 'a', 'label': config.train_split}], None\n")
    train, _ = dataset_loading.load_datasets(settings(dataset_name=str(own), train_split="b"))
    assert train == [{"text": "a", "label": "b"}]
    own.write_text("def load_data(config):\n    return None\n")
    with pytest.raises(ValueError, match=r"mine\.py does not define load_datasets\(config\)"):
        dataset_loading.load_datasets(settings(dataset_name=str(own)))


def test_uploads_are_those_of_the_config(settings: Settings) -> None:
    """tests/training/test_uploads.py pushes with them."""
    assert new_trainer(settings(), records(2)).uploads is None
    values = {"hub_model_id": "me/mine", "hub_strategy": "end", "hub_private_repo": True}
    uploads = new_trainer(settings(push_to_hub=True, **values), records(2)).uploads
    assert uploads is not None
    assert (uploads.repository, uploads.strategy, uploads.private) == ("me/mine", "end", True)


def test_columns_and_splits_of_a_hub_dataset(settings: Settings, tmp_path: Path) -> None:
    def split(word: str) -> datasets.Dataset:
        rows = {
            "photo": [Image.fromarray(image(0))] * 2,
            "second": [Image.fromarray(image(1)), None],
            "asked": [f"{word}?"] * 2,
            "said": [word] * 2,
        }
        features = datasets.Features(
            photo=datasets.Image(),
            second=datasets.Image(),
            asked=datasets.Value("string"),
            said=datasets.Value("string"),
        )
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"some": split("one"), "other": split("two")}).save_to_disk(tmp_path / "hub")
    named = {
        "dataset_name": str(tmp_path / "hub"),
        "train_split": "some",
        "eval_split": "other",
        "image_key": "photo, second",
        "text_key": "asked",
        "label_key": "said",
        "do_eval": True,
    }
    train, evaluation = dataset_loading.load_datasets(settings(**named))
    assert [len(sample.images) for sample in (train[0], train[1])] == [2, 1]
    assert (train[0].messages[0]["content"][-1]["text"], train[0].answers()) == ("one?", ["one"])
    assert evaluation[0].answers() == ["two"]
    templated, _ = dataset_loading.load_datasets(settings(**named, question_template="Say {said}."))
    assert templated[0].messages[0]["content"][-1]["text"] == "Say one."
    with pytest.raises(ValueError, match=r"no field 'nothing' \(text_key\); it has photo, second, asked, said"):
        dataset_loading.load_datasets(settings(**{**named, "text_key": "nothing"}))
    with pytest.raises(ValueError, match="there is no split 'none'; it has some, other"):
        dataset_loading.load_datasets(settings(**{**named, "train_split": "none"}))
    with pytest.raises(ValueError, match="cannot be filled in"):
        dataset_loading.load_datasets(settings(**named, question_template="Say {that}."))[0][0]


def test_captions_from_the_web(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images but one were downloaded before."""
    rows = [{"url": f"http://somewhere.test/{n}", "text": f"caption {n}"} for n in range(6)]
    png = io.BytesIO()
    Image.fromarray(image(0)).save(png, "PNG")
    with ImageShards(tmp_path / "shards") as shards:
        for number, row in enumerate(rows):
            if number == 1:
                shards.mark(row["url"], "refused")
            else:
                shards.add(row["url"], row["text"], png.getvalue())
    monkeypatch.setattr(dataset_loading, "load_split", lambda *arguments, **keywords: rows)
    values = {"dataset_name": "datacomp", "dataset_options": {"shards": str(tmp_path / "shards")}}
    train, _ = dataset_loading.load_datasets(settings(**values, num_samples=3))
    assert [train[index].answers() for index in range(len(train))] == [["caption 0"], ["caption 2"], ["caption 3"]]
    streamed, _ = dataset_loading.load_datasets(settings(**values, streaming=True, max_steps=1))
    assert len(list(streamed)) == 5
    with pytest.raises(ValueError, match="set num_samples, or streaming"):
        dataset_loading.load_datasets(settings(dataset_name="datacomp"))


def test_cached_image_features_train_as_pixels_do(
    settings: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images per sample, one of them repeated; the second run neither resizes images nor runs the tower."""
    chats = records(4)
    for number, chat in enumerate(chats):
        own = chat.pop("image")
        chat["images"] = [own, chats[0]["images"][0]] if number else [own]
    weights = []
    calls = []
    features = Gemma3Model.get_image_features

    def counted(self: Gemma3Model, pixel_values: torch.Tensor, **keywords: Any) -> Any:
        calls.append(len(pixel_values))
        return features(self, pixel_values, **keywords)

    monkeypatch.setattr(Gemma3Model, "get_image_features", counted)
    for number, cache in enumerate((None, tmp_path / "features", tmp_path / "features")):
        calls.clear()
        config = settings(
            output_dir=str(tmp_path / f"run{number}"), max_steps=2, batch_size=2, num_workers=0,
            vision_cache=None if cache is None else str(cache),
        )  # fmt: skip
        folder = recipe.train(config, lambda config: (chats, None))
        weights.append(read_tensors(folder)["projector.projection.weight"])
        assert sum(calls) == (7 * 2 // 2 if cache is None else 4 if number == 1 else 0)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(weights[2], weights[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"freeze_gemma_vision": False}, "remove vision_cache"), ({"streaming": True}, "known length")],
)
def test_features_that_change_are_not_cached(
    settings: Callable[..., TrainingConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(vision_cache="features", max_steps=2, **changes).validate()


def test_the_fast_path_needs_a_gpu(settings: Settings) -> None:
    with pytest.raises(
        ValueError, match="fast_path is on, but it needs an NVIDIA GPU, and the model is on cpu; set it to auto"
    ):
        new_trainer(settings(fast_path="on"), records(2))
