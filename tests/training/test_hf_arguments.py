"""Fields of `transformers.TrainingArguments`: each is followed, or refused with a reason."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from tests.training.conftest import load, settings_in
from theworld.training import hf_arguments, recipe
from theworld.training.checkpointing import find_last_checkpoint
from theworld.training.config import TrainingConfig, own_keys
from theworld.training.config_keys import (
    ALIASES,
    PRECISION_SWITCHES,
    UNSUPPORTED,
    trainer_field_names,
    trainer_fields,
)
from theworld.training.hf_arguments import training_arguments
from theworld.training.trainer import TheWorldTrainer

Settings = Callable[..., TrainingConfig]
REPOSITORY = Path(__file__).parents[2]

# a value other than the default for every field that is passed on
PASSED: dict[str, Any] = {
    "adam_beta1": 0.8,
    "adam_epsilon": 1e-6,
    "average_tokens_across_devices": False,
    "data_seed": 3,
    "dataloader_drop_last": True,
    "dataloader_in_order": False,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": True,
    "dataloader_prefetch_factor": 2,
    "ddp_broadcast_buffers": False,
    "ddp_bucket_cap_mb": 5,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
    "ddp_timeout": 5,
    "debug": "underflow_overflow",
    "eval_accumulation_steps": 2,
    "eval_delay": 2.0,
    "eval_on_start": True,
    "eval_use_gather_object": True,
    "full_determinism": True,
    "greater_is_better": True,
    "hub_always_push": True,
    "hub_revision": "main",
    "ignore_data_skip": True,
    "include_num_input_tokens_seen": "all",
    "label_smoothing_factor": 0.1,
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "logging_first_step": True,
    "logging_nan_inf_filter": True,
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "metric_for_best_model": "exact_match",
    "neftune_noise_alpha": 5.0,
    "optim": "adafactor",
    "optim_args": "scale_parameter=False",
    "optim_target_modules": ["q_proj"],
    "project": "mine",
    "save_strategy": "epoch",
    "skip_memory_metrics": False,
    "tf32": False,
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "torch_empty_cache_steps": 3,
    "trackio_bucket_id": "me/bucket",
    "trackio_space_id": "me/space",
    "trackio_static_space_id": "me/static",
    "use_cpu": True,
}
# handled by tests of their own, or impossible here: ddp_backend needs torchrun, parallelism_config is not a JSON value
ELSEWHERE = {
    "ddp_backend", "deepspeed", "disable_tqdm", "eval_strategy", "fsdp", "fsdp_config", "gradient_checkpointing_kwargs",
    "parallelism_config", "report_to",
}  # fmt: skip
WITH: dict[str, dict[str, Any]] = {
    "dataloader_persistent_workers": {"num_workers": 1},
    "dataloader_prefetch_factor": {"num_workers": 1},
}


def test_every_field_is_followed_or_refused() -> None:
    """A new version of transformers with a new field fails here."""
    ours = {*own_keys(), *ALIASES, *PRECISION_SWITCHES}
    handled = [ours, set(PASSED), set(UNSUPPORTED), ELSEWHERE]
    assert set(trainer_fields()) - set().union(*handled) == set()
    assert sum(map(len, handled)) == len(set().union(*handled)), "no name is handled twice"


def test_names_of_fields_are_read_without_importing_transformers() -> None:
    assert set(trainer_field_names()) == set(trainer_fields())


@pytest.mark.parametrize("field", sorted(set(PASSED) & set(trainer_fields())))
def test_a_field_reaches_trainer(settings: Settings, field: str) -> None:
    made = training_arguments(settings(**WITH.get(field, {}), **{field: PASSED[field]}))
    value = getattr(made, field)
    shown = (
        [getattr(item, "value", item) for item in value] if isinstance(value, list) else getattr(value, "value", value)
    )
    if field == "dataloader_pin_memory" and made.use_cpu:
        return  # TrainingArguments itself turns it off on a CPU
    assert shown in (PASSED[field], [PASSED[field]])


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_followed_is_an_error_with_its_reason(field: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"sets {field}, which TheWorld does not support: {UNSUPPORTED[field]}")
    ):
        TrainingConfig.from_dict({field: None})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optim": "adam"}, "transformers does not accept these settings: adam is not a valid OptimizerNames"),
        ({"lr_scheduler": "cosin"}, "cosin is not a valid SchedulerType"),
        ({"logging_steps": 2.5}, "must be an integer if bigger than 1"),
        ({"dataloader_prefetch_factor": 2}, "can only be set when data is loaded in a different process"),
        ({"fsdp_config": {"version": 2}}, "fsdp_config has no effect without fsdp; set fsdp to true, or remove it."),
        ({"fsdp": True}, "fsdp shards a model over several processes, and this is one; start it with torchrun"),
        (
            {"fsdp": True, "fsdp_config": {"version": 1}},
            "FSDP version 1 is not supported; set the version in fsdp_config",
        ),
    ],
)
def test_wrong_values_are_refused_before_the_model_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(recipe, "describe", lambda *_: pytest.fail("the run had begun"))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        recipe.train(settings(**values), load())
    assert "\n" not in str(error.value)


def test_deepspeed_that_is_not_installed_and_files_of_settings_that_do_not_exist(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "deepspeed" else find(name))
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    install = r"not installed: run `pip install \"theworld\[deepspeed\]\"`"
    for value in (str(tmp_path / "zero2.json"), {"zero_optimization": {"stage": 2}}):
        with pytest.raises(ValueError, match=install):
            recipe.train(settings(deepspeed=value), load())
    for key in ("deepspeed", "fsdp_config"):
        with pytest.raises(ValueError, match=f"There is no file nowhere.json, which {key} names"):
            recipe.train(settings(**{key: "nowhere.json"}), load())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=install):
        training_arguments(settings())


def outcome(config: TrainingConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and final weights of a run."""
    folder = recipe.train(config, load())
    last = find_last_checkpoint(folder)
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry], load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def plain(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Any]:
    """The outcome of three steps with the settings of these tests."""
    return outcome(settings_in(tmp_path_factory.mktemp("plain"), bases)(max_steps=3))


@pytest.fixture(scope="module")
def plain_lora(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Any]:
    """The outcome of two steps with a LoRA."""
    return outcome(settings_in(tmp_path_factory.mktemp("plain"), bases)(lora=2))


@pytest.mark.parametrize(
    ("values", "first_loss_changes"),
    [
        ({"optim": "sgd"}, False),
        ({"optim": "adafactor", "optim_args": "scale_parameter=False"}, False),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}}, False),
        ({"label_smoothing_factor": 0.2}, True),
        ({"neftune_noise_alpha": 5.0}, True),
        ({"data_seed": 7}, True),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_changes_what_is_learned(
    settings: Settings, plain: tuple[list[float], Any], values: dict[str, Any], first_loss_changes: bool
) -> None:
    (losses, weights), (other_losses, other_weights) = plain, outcome(settings(max_steps=3, **values))
    assert (losses[0] != other_losses[0]) == first_loss_changes
    assert not torch.equal(weights["projector.projection.weight"], other_weights["projector.projection.weight"])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"torch_compile_backend": "eager"}, marks=pytest.mark.slow),  # tracing takes 10 seconds
        {"use_gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"num_workers": 1, "dataloader_prefetch_factor": 2},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_field_changes_how_it_is_computed_only(
    settings: Settings, plain_lora: tuple[list[float], Any], values: dict[str, Any]
) -> None:
    losses, _ = outcome(settings(lora=2, **values))
    assert losses == pytest.approx(plain_lora[0], abs=1e-5)


def test_evaluation_by_epoch(settings: Settings) -> None:
    config = settings(eval_strategy="epoch", save_strategy="epoch", max_steps=6, logging_steps=0.5, save_total_limit=1)
    folder = recipe.train(config, load())
    last = find_last_checkpoint(folder)
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3, 6]
    assert [entry["step"] for entry in history if "loss" in entry] == [3, 6]


def test_a_missing_package_is_named(settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"optim galore_adamw is not available: .*galore"):
        recipe.train(settings(optim="galore_adamw", optim_target_modules=["q_proj"]), load())


def test_the_contract_with_trainer() -> None:
    """The private methods of Trainer that we override or call, with the parameters that we rely on.

    The upper bound of transformers in pyproject.toml is the last version that this test and the suite were run with.
    """
    relied_on = {
        "_get_train_sampler": ["train_dataset"],
        "_get_dataloader": [],
        "_prepare_inputs": ["inputs"],
        "_save_checkpoint": ["model", "trial"],
        "_prepare_for_training": ["max_steps", "train_dataloader", "resume_from_checkpoint"],
        "_wrap_model": ["model"],
        "save_model": ["output_dir", "_internal_call"],
        "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
        "_init_training_state": ["max_steps"],
        "_save_optimizer_and_scheduler": ["output_dir"],
        "_save_scaler": ["output_dir"],
        "_save_rng_state": ["output_dir"],
        "_push_from_checkpoint": ["checkpoint_folder"],
        "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
        "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    }
    for name, parameters in relied_on.items():
        signature = inspect.signature(getattr(Trainer, name))
        assert list(signature.parameters)[1 : 1 + len(parameters)] == parameters, name
    overridden = {name for name in vars(TheWorldTrainer) if name.startswith("_") and hasattr(Trainer, name)}
    assert {name for name in overridden if not name.startswith("__")} <= set(relied_on)


def test_installed_versions_are_within_the_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = {requirement.name: requirement.specifier for requirement in map(Requirement, project["dependencies"])}
    for name in ("transformers", "diffusers"):
        assert version(name) in bounds[name]
        assert any(bound.operator == "<" for bound in bounds[name]), f"{name} has an upper bound"


def test_one_process_uses_one_gpu_and_says_how_to_use_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainer's own way with several, nn.DataParallel, ended in a traceback."""

    class TwoGPUs(TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(hf_arguments, "TrainingArguments", TwoGPUs)
    made = hf_arguments.training_arguments(settings(batch_size=3))
    assert (made.n_gpu, made.train_batch_size) == (1, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    recipe.check_machine(settings())
    assert "This run uses one of 2 GPUs; start it with torchrun" in caplog.text
