"""Every key of the source document has its default, unknown ones are fatal, and each reaches what it configures."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from theworld.training.config import TrainingConfig

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("[!e]*.json"))  # eval_*.json is for scripts/evaluate_blink.py

# what the source document says of each key, where it says a default
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


def test_the_documents_keys_have_its_defaults() -> None:
    config = TrainingConfig()
    for key, value in DOCUMENT.items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_read(path: Path) -> None:
    assert TrainingConfig.read(path).to_dict().items() >= json.loads(path.read_text()).items()


def test_the_order_is_defaults_file_changes_options(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"batch_size": 2, "learning_rate": 1e-3, "output_dir": "from-file"}))
    config = TrainingConfig.read(file, ["learning_rate=2e-3", "seed=7"], output_dir="from-option", num_samples=None)
    assert (config.batch_size, config.learning_rate, config.seed, config.output_dir) == (2, 2e-3, 7, "from-option")
    assert (config.num_epochs, config.num_samples) == (3, None)


def test_changes_are_json_or_text() -> None:
    changes = ["output_dir=runs/a=b", "do_eval=true", "max_steps=null", 'world_steps_mix={"0": 1, "4": 3}', "lora=8"]
    config = TrainingConfig.read(None, changes)
    assert (config.output_dir, config.do_eval, config.max_steps, config.lora) == ("runs/a=b", True, None, 8)
    assert config.steps_shares == {0: 0.25, 4: 0.75}


def test_a_json_lines_file_is_a_dataset_wherever_it_is_named(tmp_path: Path) -> None:
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
        ({"lerning_rate": 1}, "has a key 'lerning_rate' that nobody reads; did you mean 'learning_rate'"),
        ({"frobnicate": 1}, "known are model_name, "),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5; give a whole number"),
        ({"batch_size": True}, "batch_size is True; give a whole number"),
        ({"do_eval": 1}, "do_eval is 1; give true or false"),
        ({"max_steps": "many"}, "max_steps is 'many'; give a whole number or null"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0"),
        ({"mixed_precision": "int8"}, "choose one of bf16, fp16, fp32, no"),
        ({"hub_strategy": "always"}, "choose one of end, every_save"),
        ({"true_futures": 1.5}, "a share lies between 0 and 1"),
        ({"world_dropout": 0.7, "picture_dropout": 0.6}, "add up to more than 1"),
        ({"world_steps_mix": {"four": 1}}, "give numbers of world steps"),
        ({"world_steps_mix": {}}, "world_steps_mix is empty"),
        ({"streaming": True}, "streaming needs max_steps"),
        (
            {"dataset_name": "a.jsonl", "train_dataset_path": "b.jsonl"},
            "dataset_name is 'a.jsonl' and train_dataset_path 'b.jsonl', two files to train on; leave one of them out",
        ),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({"freeze_cosmos_vae": False, "num_world_steps": 4}, "no gradient comes back through a rollout"),
        ({"freeze_cosmos_vae": False, "world_steps_mix": {"0": 1, "2": 1}}, "with 2 world steps, but no gradient"),
        ({"freeze_cosmos_vae": False, "latent_cache": "cache"}, "leave latent_cache out"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        TrainingConfig.read(file)
    assert "\n" not in str(error.value)


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


def test_the_token_is_nowhere_but_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
