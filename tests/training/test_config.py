"""Defaults of the source document, the order of precedence, other names of keys, and errors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from theworld.training.config import TrainingConfig, own_keys
from theworld.training.config_keys import ALIASES, ELSEWHERE, trainer_field_names

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("[!e]*.json"))  # eval_*.json is for scripts/evaluate_blink.py

# defaults in the source document
DOCUMENT: dict[str, Any] = {
    "model_name": "google/gemma-3-4b-it",
    "cosmos_model_name": "nvidia/Cosmos-Predict2-2B-Video2World",
    "max_world_steps": 16,
    "freeze_gemma_vision": True,
    "freeze_gemma_language": True,
    "freeze_cosmos_vae": True,
    "learning_rate": 1e-4,
    "batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "max_steps": None,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "use_gradient_checkpointing": False,
    "mixed_precision": "bf16",
    "output_dir": "./checkpoints",
    "save_steps": 500,
    "save_total_limit": 3,
    "resume_from_checkpoint": None,
    "eval_steps": 500,
    "do_eval": False,
    "logging_steps": 10,
    "log_to_tensorboard": True,
    "log_to_wandb": False,
    "wandb_project": "theworld-training",
    "wandb_run_name": None,
    "max_seq_length": 2048,
    "num_workers": 4,
    "num_samples": None,
    "streaming": False,
    "question_template": None,
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_strategy": "every_save",
    "hub_private_repo": False,
    "hf_token": None,
}


def test_keys_of_the_source_document_have_its_defaults() -> None:
    config = TrainingConfig()
    for key, value in DOCUMENT.items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_read(path: Path) -> None:
    assert TrainingConfig.read(path).to_dict().items() >= json.loads(path.read_text()).items()


def test_precedence_is_defaults_file_changes_options(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"batch_size": 2, "learning_rate": 1e-3, "output_dir": "from-file"}))
    config = TrainingConfig.read(file, ["learning_rate=2e-3", "seed=7"], output_dir="from-option", num_samples=None)
    assert (config.batch_size, config.learning_rate, config.seed, config.output_dir) == (2, 2e-3, 7, "from-option")
    assert (config.num_epochs, config.num_samples) == (3, None)


def test_names_of_transformers_and_former_names_mean_our_keys() -> None:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 5,
        "lr_scheduler_type": "cosine",
        "dataloader_num_workers": 1,
        "gradient_checkpointing": True,
        "run_name": "mine",
        "hub_token": "hf_secret",
        "bf16": False,
        "fp16": True,
        "eval_strategy": "steps",
        "max_steps": -1,
        "report_to": ["wandb"],
        "picture_dropout": 0.25,
        "projector_places": "waves",
    }
    expected = TrainingConfig(
        batch_size=2,
        eval_batch_size=3,
        num_epochs=5,
        lr_scheduler="cosine",
        num_workers=1,
        use_gradient_checkpointing=True,
        wandb_run_name="mine",
        hf_token="hf_secret",
        mixed_precision="fp16",
        do_eval=True,
        max_steps=None,
        log_to_wandb=True,
        log_to_tensorboard=False,
        image_dropout=0.25,
        projector_positions="sinusoidal",
    )
    assert TrainingConfig.from_dict(given) == expected
    assert TrainingConfig.from_dict({"bf16": False}).mixed_precision == "fp32"
    same = TrainingConfig.from_dict({"per_device_train_batch_size": 2, "batch_size": 2})
    assert same.batch_size == 2


def test_the_command_line_overrides_the_file_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"batch_size": 2, "optim": "sgd", "report_to": "mlflow", "do_eval": True}))
    config = TrainingConfig.read(
        file,
        ["per_device_train_batch_size=3", "optim=adafactor", 'lr_scheduler_kwargs={"num_cycles": 2}', "bf16=False"],
    )
    assert (config.batch_size, config.mixed_precision) == (3, "fp32")
    assert config.trainer_arguments == {
        "optim": "adafactor",
        "report_to": ["mlflow"],
        "lr_scheduler_kwargs": {"num_cycles": 2},
    }
    assert TrainingConfig.read(file, ["eval_strategy=no"]).do_eval is False


@pytest.mark.parametrize(
    "values",
    [
        {"optim": "adafactor", "optim_args": "scale_parameter=False", "adam_epsilon": 1e-6},
        {"report_to": ["mlflow", "wandb"]},
        {"report_to": "all"},
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"deepspeed": {"zero_optimization": {"stage": 1}}, "warmup_steps": 0.1},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}},
    ],
)
def test_a_saved_config_is_read_as_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    config = TrainingConfig.from_dict(values)
    config.write(tmp_path / "run.json")
    assert TrainingConfig.read(tmp_path / "run.json") == config


def test_options_of_another_dataset_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The config of the README, with a dataset of one's own on the command line."""
    caplog.set_level("INFO", logger="theworld")
    path = REPOSITORY / "configs" / "nano_projector.json"
    chats = str(tmp_path / "chats.jsonl")
    with pytest.raises(ValueError, match=r"There is no file .*chats\.jsonl, which train_dataset_path names; give"):
        TrainingConfig.read(path, dataset_name=chats)
    assert caplog.text == "", "a missing file is the only message"
    Path(chats).touch()
    config = TrainingConfig.read(path, dataset_name=chats)
    assert (config.dataset_name, config.train_dataset_path, config.dataset_options) == ("jsonl", chats, {})
    assert f"dataset_options of the config belong to physics and are not used for {chats}" in caplog.text
    own = TrainingConfig.read(path, ['dataset_options={"split": "a"}'], dataset_name="me/data")
    assert own.dataset_options == {"split": "a"}
    caplog.clear()
    assert TrainingConfig.read(path, dataset_name="physics").dataset_options != {}
    assert caplog.text == ""


def test_changes_are_json_or_text() -> None:
    changes = ["output_dir=runs/a=b", "do_eval=true", "max_steps=null", 'world_steps_mix={"0": 1, "4": 3}', "lora=8"]
    config = TrainingConfig.read(None, changes)
    assert (config.output_dir, config.do_eval, config.max_steps, config.lora) == ("runs/a=b", True, None, 8)
    assert config.steps_shares == {0: 0.25, 4: 0.75}


def test_a_json_lines_file_can_be_given_as_dataset_name(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"dataset_name": "data/train.jsonl"}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"dataset_name": "jsonl", "train_dataset_path": "old.jsonl"}))
    for config, path in (
        (TrainingConfig(dataset_name="data/train.jsonl"), "data/train.jsonl"),
        (TrainingConfig.read(file), "data/train.jsonl"),
        (TrainingConfig.read(None, ["dataset_name=data/train.jsonl"]), "data/train.jsonl"),
        (TrainingConfig.read(other, dataset_name="new.jsonl"), "new.jsonl"),
        (TrainingConfig.read(other, ["dataset_name=new.jsonl"]), "new.jsonl"),
        (TrainingConfig.read(other), "old.jsonl"),
    ):
        assert (config.dataset_name, config.train_dataset_path) == ("jsonl", path)
    with pytest.raises(ValueError, match="two files to train on"):
        TrainingConfig.read(other, ["train_dataset_path=more.jsonl"], dataset_name="new.jsonl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lerning_rate": 1}, "Unknown key 'lerning_rate' in "),
        ({"lerning_rate": 1}, "; did you mean 'learning_rate'?"),
        ({"lr_scheduler_kwarg": {}}, "; did you mean 'lr_scheduler_kwargs'?"),
        ({"evaluation_strategy": "steps"}, "; did you mean 'eval_strategy'?"),
        ({"frobnicate": 1}, "known keys are model_name, "),
        ({"frobnicate": 1}, ", and those of transformers.TrainingArguments."),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; it must be between 0 and 4294967295"),
        ({"batch_size": 2.5}, "batch_size is 2.5; give a whole number"),
        ({"batch_size": True}, "batch_size is True; give a whole number"),
        ({"do_eval": 1}, "do_eval is 1; give true or false"),
        ({"max_steps": "many"}, "max_steps is 'many'; give a whole number or null"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0"),
        ({"mixed_precision": "int8"}, "choose one of bf16, fp16, fp32, no"),
        ({"hub_strategy": "always"}, "choose one of end, every_save"),
        ({"true_futures": 1.5}, "true_futures is 1.5; it must be in [0, 1]"),
        ({"world_dropout": 0.7, "image_dropout": 0.6}, "add up to more than 1"),
        ({"world_steps_mix": {"four": 1}}, "give numbers of world steps"),
        ({"world_steps_mix": {}}, "world_steps_mix is empty"),
        ({"streaming": True}, "streaming needs max_steps"),
        (
            {"dataset_name": "a.jsonl", "train_dataset_path": "b.jsonl"},
            "dataset_name is 'a.jsonl' and train_dataset_path is 'b.jsonl', two files to train on; remove one of them",
        ),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({"freeze_cosmos_vae": False, "num_world_steps": 4}, "a rollout passes no gradient"),
        (
            {"freeze_cosmos_vae": False, "world_steps_mix": {"0": 1, "2": 1}},
            "with 2 world steps, but a rollout passes no gradient",
        ),
        (
            {"per_device_train_batch_size": 2, "batch_size": 3},
            "gives per_device_train_batch_size and batch_size, which",
        ),
        ({"bf16": True, "fp16": True}, "gives bf16 and fp16, which contradict each other"),
        (
            {"report_to": "wandb", "log_to_wandb": False},
            "gives report_to and log_to_wandb, which contradict each other",
        ),
        ({"eval_strategy": "no", "do_eval": True}, "gives eval_strategy and do_eval, which contradict each other"),
        ({"picture_dropout": 0.1, "image_dropout": 0.2}, "gives picture_dropout and image_dropout, which contradict"),
        ({"adam_epsilon": "small"}, "adam_epsilon is 'small'; give a number"),
        ({"lr_scheduler_kwargs": 3}, "lr_scheduler_kwargs is 3; give a JSON object or text or null"),
        ({"optim": "sgd", "optimizer": "muon"}, "optimizer is 'muon', but optim is 'sgd'; remove one of them"),
        (
            {"optim_args": "a=1", "optimizer": "muon"},
            "optimizer is 'muon', but optim_args is 'a=1'; remove one of them",
        ),
        ({"use_liger_kernel": True}, "sets use_liger_kernel, which TheWorld does not support: Liger's kernels"),
        ({"freeze_cosmos_vae": False, "latent_cache": "cache"}, "remove latent_cache"),
    ],
)
def test_wrong_values_are_errors_of_one_sentence(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        TrainingConfig.read(file)
    assert "\n" not in str(error.value)


def test_names_of_other_trainers_are_suggestions() -> None:
    common = {
        "lr": "learning_rate", "epochs": "num_epochs", "bs": "batch_size", "steps": "max_steps", "wd": "weight_decay",
        "warmup": "warmup_steps", "warmup_ratio": "warmup_steps", "random_seed": "seed", "output": "output_dir",
        "resume": "resume_from_checkpoint", "precision": "mixed_precision", "dtype": "mixed_precision",
        "grad_accum": "gradient_accumulation_steps", "grad_clip": "max_grad_norm", "scheduler": "lr_scheduler",
        "model": "model_name", "data": "dataset_name", "workers": "num_workers", "max_length": "max_seq_length",
        "lora_rank": "lora", "beta2": "adam_beta2", "token": "hf_token", "wandb": "log_to_wandb",
    }  # fmt: skip
    for name, ours in common.items():
        with pytest.raises(ValueError, match=f"Unknown key '{name}' in the config; did you mean '{ours}'"):
            TrainingConfig.from_dict({name: 1})
    names = {name for others in ELSEWHERE.values() for name in others.split()}
    assert names.isdisjoint({*own_keys(), *ALIASES, *trainer_field_names()}), "a suggestion is for unknown keys"
    assert set(ELSEWHERE) <= {*own_keys(), *trainer_field_names()}


def test_what_is_written_is_what_was_used(tmp_path: Path) -> None:
    """A setting that another one replaces is not written, and older files with both are read."""
    written = TrainingConfig.from_dict({"optim": "adafactor"}).to_dict()
    assert (written["optim"], "optimizer" in written) == ("adafactor", False)
    assert TrainingConfig().to_dict()["optimizer"] == "adamw"
    everywhere = TrainingConfig.from_dict({"report_to": "all"}).to_dict()
    assert everywhere["report_to"] == ["all"]
    assert not {"log_to_wandb", "log_to_tensorboard"} & set(everywhere)
    both = {"optimizer": "adamw", "optim": "adafactor", "report_to": ["all"], "log_to_wandb": False}
    assert TrainingConfig.from_dict(both).to_dict().keys() == {**written, **everywhere}.keys() - {
        "optimizer", "log_to_wandb", "log_to_tensorboard"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not valid JSON"), ("[1]", "holds no JSON object"), (None, "There is no config")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        TrainingConfig.read(file)
    assert "run.json" in str(error.value)


def test_the_token_is_moved_to_the_environment_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    config = TrainingConfig.read(None, ["hf_token=12345"])  # text, although it looks like a number
    assert config.hf_token == "12345"
    config.write(tmp_path / "run.json")
    config.move_token()
    assert (os.environ["HF_TOKEN"], config.hf_token) == ("12345", None)
    for shown in (repr(config), str(config.to_dict()), (tmp_path / "run.json").read_text()):
        assert "12345" not in shown
    with pytest.raises(ValueError, match=r"^hf_token is of another type; give text or null\.$"):
        TrainingConfig(hf_token=["12345"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gives hub_token and hf_token, which contradict each other") as error:
        TrainingConfig.from_dict({"hub_token": "12345", "hf_token": "67890"})
    assert "12345" not in str(error.value)
