"""The `transformers.TrainingArguments` of a config: our keys under Trainer's names, then the fields passed through."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from theworld.training.config import TrainingConfig, check_file

logger = logging.getLogger(__name__)

LOGS = "logs"  # inside output_dir
SETTINGS_FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # fields that may name a JSON file


def training_arguments(config: TrainingConfig) -> TrainingArguments:
    """Arguments of Trainer. The token is not one of them, since libraries find it in the environment.

    Raises:
        ValueError: if transformers does not accept a field, a file of settings is missing, or DeepSpeed is.
    """
    check_settings_files(config)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(config.output_dir) / LOGS)  # the only way to set it
    os.environ["WANDB_PROJECT"] = config.wandb_project
    others = copy.deepcopy(config.trainer_arguments)  # TrainingArguments changes dicts in place
    strategy = others.pop("eval_strategy", "steps")
    for key in ("report_to", "disable_tqdm"):
        others.pop(key, None)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    # transformers renamed it in the middle of the versions that we support
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    recompute = others.pop("gradient_checkpointing_kwargs", None) or {}
    arguments: dict[str, Any] = {
        "output_dir": config.output_dir,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.eval_batch_size or config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        "use_cpu": not torch.accelerator.is_available(),  # Trainer refuses bf16 on a CPU otherwise
        "bf16": config.autocast == "bf16",
        "fp16": config.autocast == "fp16",
        "seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "eval_strategy": strategy if config.do_eval else "no",
        "eval_steps": config.eval_steps,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # a loss that is not finite is shown as it is
        "report_to": config.trackers or "none",
        "disable_tqdm": True,  # progress is reported by the recipe
        "run_name": config.wandb_run_name,
        "dataloader_num_workers": config.num_workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,  # the collator makes the columns
        "accelerator_config": {"dispatch_batches": False, "non_blocking": torch.cuda.is_available()},
        "ddp_find_unused_parameters": not config.freeze_cosmos_vae,  # its time convolutions get no single frame
        "push_to_hub": False,  # theworld.training.uploads does it, and reports what failed
        "hub_model_id": config.hub_model_id,
        "hub_strategy": config.hub_strategy,
        "hub_private_repo": config.hub_private_repo,
    }
    if config.use_gradient_checkpointing:
        arguments |= {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False, **recompute}}
    try:
        made = TrainingArguments(**{**arguments, **others})
    except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
        raise ValueError(f"transformers does not accept these settings: {' '.join(str(error).split())}") from error
    if others.get("fsdp_config") and not made.fsdp:
        raise ValueError("fsdp_config has no effect without fsdp; set fsdp to true, or remove it.")
    if made.fsdp and int(made.fsdp_config.get("version", 2)) != 2:
        raise ValueError("FSDP version 1 is not supported; set the version in fsdp_config to 2, or remove it.")
    if made.fsdp and made.parallel_mode is not ParallelMode.DISTRIBUTED:
        raise ValueError("fsdp shards a model over several processes, and this is one; start it with torchrun.")
    if made.n_gpu > 1:  # Trainer would use nn.DataParallel, which cannot gather logits of unequal lengths
        made._n_gpu = 1
    return made


def check_settings_files(config: TrainingConfig) -> None:
    """Raises a ValueError if a file of settings does not exist, or if DeepSpeed is wanted and not installed."""
    for key in SETTINGS_FILES:
        value = config.trainer_arguments.get(key)
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            check_file(value, key, "a JSON file of its settings")
    is_wanted = config.trainer_arguments.get("deepspeed") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if is_wanted and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            'deepspeed needs the package DeepSpeed, which is not installed: run `pip install "theworld[deepspeed]"`, '
            "or train without it."
        )
