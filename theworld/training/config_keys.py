"""Names and values of settings: our own keys, the fields of `transformers.TrainingArguments`, and former names.

A setting has one canonical name. It is our own key where we have one (the names of the source document), and the name
in `TrainingArguments` otherwise. `canonical` brings what a file or a command line holds into this form.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from theworld.messages import suggest

SECRET = "hf_token"
PRECISION_SWITCHES = ("bf16", "fp16")
TRACKERS = {"tensorboard": "log_to_tensorboard", "wandb": "log_to_wandb"}  # names in `report_to`, and our switches

# other name -> canonical name: fields of TrainingArguments with another name here, options, former names of our keys
ALIASES = {
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "num_train_epochs": "num_epochs",
    "lr_scheduler_type": "lr_scheduler",
    "dataloader_num_workers": "num_workers",
    "gradient_checkpointing": "use_gradient_checkpointing",
    "activation_checkpointing": "use_gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "run_name": "wandb_run_name",
    "hub_token": SECRET,
    "resume_from": "resume_from_checkpoint",  # options of the command line
    "dataset": "dataset_name",
    "picture_dropout": "image_dropout",
    "projector_places": "projector_positions",
}
# our key -> names that other trainers have for it, which are suggestions in errors and no keys
ELSEWHERE = {
    "adam_beta2": "beta2",
    "batch_size": "bs bsz train_batch_size micro_batch_size",
    "dataset_name": "data data_path dataset_path train_data train_file",
    "gradient_accumulation_steps": "accumulate_grad_batches accumulation_steps grad_accum",
    "hf_token": "token",
    "learning_rate": "lr max_lr",
    "log_to_wandb": "wandb use_wandb",
    "lora": "lora_r lora_rank peft use_lora use_peft",
    "lr_scheduler": "scheduler",
    "max_grad_norm": "clip grad_clip gradient_clipping",
    "max_seq_length": "max_len max_length seq_len",
    "max_steps": "iterations iters max_iters num_steps steps total_steps",
    "mixed_precision": "amp dtype fp32 precision torch_dtype",
    "model_name": "model model_name_or_path",
    "num_epochs": "epoch epochs max_epochs",
    "num_workers": "workers",
    "output_dir": "out out_dir output save_dir",
    "resume_from_checkpoint": "checkpoint ckpt resume",
    "seed": "random_seed random_state",
    "warmup_steps": "warmup warmup_iters warmup_ratio",
    "weight_decay": "wd",
}
FORMER_VALUES = {("projector_positions", "waves"): "sinusoidal"}

# fields of TrainingArguments that this trainer cannot follow, and why
UNSUPPORTED = {
    "accelerator_config": "batches hold requests to the world model, which cannot be dispatched between processes",
    "auto_find_batch_size": "samples are grouped by batch size before training; set batch_size",
    "batch_eval_metrics": "evaluation computes exact means over all samples",
    "bf16_full_eval": "the model is evaluated in the precision that it is trained in; set mixed_precision",
    "do_predict": "there is no test set; use `theworld eval` after training",
    "do_train": "training is all that this command does",
    "enable_jit_checkpoint": "SIGTERM already saves a checkpoint",
    "eval_do_concat_batches": "evaluation computes exact means over all samples",
    "fp16_full_eval": "the model is evaluated in the precision that it is trained in; set mixed_precision",
    "include_for_metrics": "the metrics of an evaluation are fixed",
    "label_names": "labels are made by the collator",
    "length_column_name": "samples have no columns; set max_seq_length to limit their length",
    "liger_kernel_config": "Liger's kernels replace forward methods and would leave out the world tokens",
    "load_best_model_at_end": "the last model is saved; choose a checkpoint by its eval_loss",
    "local_rank": "torchrun sets it",
    "prediction_loss_only": "evaluation always reports eval_loss and eval_exact_match",
    "remove_unused_columns": "samples have no columns",
    "restore_callback_states_from_checkpoint": "checkpoints hold no states of callbacks",
    "save_on_each_node": "checkpoints are written by the main process",
    "save_only_model": "every checkpoint can be resumed from",
    "train_sampling_strategy": "samples are shuffled by seed and epoch, which resuming relies on",
    "use_cache": "training has no key-value cache",
    "use_liger_kernel": "Liger's kernels replace forward methods and would leave out the world tokens",
}

JSON_TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a JSON object",
    list: "a list",
    types.NoneType: "null",
}


@functools.cache
def trainer_field_names() -> tuple[str, ...]:
    """Names of the fields of `TrainingArguments`, read from its source: importing it takes seconds."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
    classes = {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    fields = (node.target for node in classes["TrainingArguments"] if isinstance(node, ast.AnnAssign))
    return tuple(target.id for target in fields if isinstance(target, ast.Name))


@functools.cache
def trainer_fields() -> dict[str, Any]:
    """Names and types of the fields of `TrainingArguments`."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    hints["fsdp"] = bool | str | None  # as documented; the annotation is for the command line of transformers
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments)}


def canonical(values: Mapping[str, Any], known: Collection[str], source: str) -> dict[str, Any]:
    """The same settings under their canonical names.

    Args:
        known: our own keys.
        source: where the settings come from, for error messages.

    Raises:
        ValueError: if a key is unknown or not supported, or if two names of one setting have different values.
    """
    found: dict[str, tuple[str, Any]] = {}  # canonical name -> the name that was used, and its value
    half_precision = any(values.get(name) is True for name in PRECISION_SWITCHES)
    for key, value in values.items():
        if key in PRECISION_SWITCHES and value is False and half_precision:
            continue  # the other one is switched on
        if key not in known and key not in ALIASES:
            check_trainer_field(key, known, source)
        for name, meaning in expand(ALIASES.get(key, key), value).items():
            used, before = found.setdefault(name, (key, meaning))
            if used != key and before != meaning:
                raise ValueError(f"{source} gives {used} and {key}, which contradict each other; remove one of them.")
    return {name: value for name, (_, value) in found.items()}


def check_trainer_field(key: str, known: Collection[str], source: str) -> None:
    """Raises a ValueError unless `key` is a field of TrainingArguments that this trainer follows."""
    if key in UNSUPPORTED:
        raise ValueError(f"{source} sets {key}, which TheWorld does not support: {UNSUPPORTED[key]}.")
    fields = trainer_field_names()
    if key in fields:
        return
    names = [name for name in (*known, *fields) if name not in UNSUPPORTED]
    choices = f"known keys are {', '.join(known)}, and those of transformers.TrainingArguments."
    ours = next((name for name, others in ELSEWHERE.items() if key in others.split()), key)
    raise ValueError(f"Unknown key {key!r} in {source}; {suggest(ours, names, choices)}")


def expand(key: str, value: Any) -> dict[str, Any]:
    """One setting in canonical form: Trainer has other names for some values, and fields that set two of our keys."""
    if key in PRECISION_SWITCHES:
        return {"mixed_precision": key if checked(key, value, bool) else "fp32"}
    if key == "max_steps" and value == -1:
        return {key: None}
    if key == "eval_strategy":
        more = {key: value} if value not in ("no", "steps") else {}
        return {"do_eval": value != "no", **more}
    if key == "report_to":
        names = [] if value in (None, "none", ["none"]) else [value] if isinstance(value, str) else list(value)
        if "all" in names:
            return {key: ["all"]}
        switches = {switch: name in names for name, switch in TRACKERS.items()}
        others = [name for name in names if name not in TRACKERS]
        return {**switches, **({key: others} if others else {})}
    if isinstance(value, str):
        value = FORMER_VALUES.get((key, value), value)
    return {key: value}


def checked(name: str, value: Any, wanted: Any) -> Any:
    """`value`, if it has one of the JSON types that a field is annotated with; a whole number is taken for a float.

    Raises:
        ValueError: if it has another type. The value of a secret is not shown.
    """
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    options = typing.get_args(wanted) if union else (wanted,)
    kinds = tuple(kind for option in options if (kind := typing.get_origin(option) or option) in JSON_TYPES)
    if type(value) is int and float in kinds and int not in kinds and bool not in kinds:
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        shown = "of another type" if name == SECRET else repr(value)
        raise ValueError(f"{name} is {shown}; give {' or '.join(JSON_TYPES[kind] for kind in kinds)}.")
    return value


def assignments(changes: Sequence[str]) -> dict[str, Any]:
    """`["seed=1", "output_dir=runs/a"]` as a dict; raises a ValueError if one of them has no `=`."""
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is not a setting; write it as learning_rate=1e-3.")
        name = key.strip()
        values[name] = text if ALIASES.get(name, name) == SECRET else parsed(text)
    return values


def parsed(text: str) -> Any:
    """A value from the command line: JSON, or Python's True, False or None, else text. NaN is not JSON."""
    words = {"True": True, "False": False, "None": None}
    try:
        return words[text] if text in words else json.loads(text, parse_constant=lambda name: name)
    except json.JSONDecodeError:
        return text
