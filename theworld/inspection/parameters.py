"""What a model consists of, which parts can be trained, and the memory that it takes: `describe_model`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from transformers.initialization import no_init_weights

from theworld.inspection import memory
from theworld.inspection.memory import Prediction
from theworld.inspection.provenance import labels
from theworld.inspection.run_memory import STRATEGIES, training_run
from theworld.inspection.small_cards import quantised_counts, stored_counts, what_fits
from theworld.model import freezing
from theworld.model.call_plan import plan_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import dtype_of
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.spec import ModelSpec, resolve_model
from theworld.world_models.base import WORLD_PARTS

# component -> prefixes of its parameters' names (or parts of them, if they start with a dot); the first match counts
COMPONENTS = {
    "projection": ("projector.projection.",),
    "projector's embeddings": ("projector.",),  # of space and time, and the two boundary tokens
    "LoRA": (".lora_A.", ".lora_B."),
    "vision tower": ("vlm.model.vision_tower.",),
    "vision projector": ("vlm.model.multi_modal_projector.",),
    "text embeddings": ("vlm.model.language_model.embed_tokens.", "vlm.lm_head."),
    "language model": ("vlm.model.language_model.",),
    "VAE encoder": ("world.vae.encoder.",),
    "VAE decoder": ("world.vae.decoder.",),
    "VAE latent convolutions": ("world.vae.quant_conv.", "world.vae.post_quant_conv."),
    "world transformer": ("world.transformer.",),
}


def describe_model(
    model: str | ModelSpec,
    world_model: str | None = None,
    *,
    num_world_steps: int | None = None,
    batch_size: int = 1,
    dtype: str | torch.dtype = "bfloat16",
    num_gpus: int = 1,
) -> dict[str, Any]:
    """Describes a model from its configurations, without reading its weights.

    Args:
        model: `nano`, a folder or a Hub id, or what `resolve_model` returned for one. For a Gemma 3, the fusion with
            `world_model` is described.
        world_model: None means the published Cosmos-Predict2 of 2B.
        num_world_steps: world steps of the predicted memory; None means what `plan_call` chooses for an answer, and the
            model's own number for training.
        batch_size: images per batch of the predicted memory.
        dtype: type of the weights in the predicted memory.
        num_gpus: that a training run of `theworld train` is predicted for.

    Returns:
        A dict that can be written as JSON: the base models and settings, `components` and `parameters` (counts),
        `freeze_settings` (trainable parameters, memory of a training step in stock PyTorch, and `run_memory`, that of
        `theworld train` per GPU by strategy and without and with checkpointing), `tokens` (per image and per world
        step), `memory` (of an answer, in bytes), `small_cards` (see `what_fits`), and `notes` (sentences for the user).

    Raises:
        ValueError: if the model cannot be read, or a value is out of range.
    """
    bytes_each = dtype_of(dtype).itemsize
    spec = resolve_model(model, world_model=world_model, describe_only=True) if isinstance(model, str) else model
    spec.check_world_model(world_model)
    config, notes = spec.config, list(spec.notes)
    plan = plan_call(config, num_world_steps=num_world_steps)
    if plan.reason and plan.mode == "frames":
        notes.append(f"{plan.reason} An answer therefore sees imagined frames, one per world step.")
    training_steps = config.num_world_steps if num_world_steps is None else num_world_steps
    built = build_on_meta(config)
    trained = config.trained_parts or (["projector"] if config.enable_world else [])
    freezing.train_only(built, [part for part in trained if part in freezing.TRAINABLE_PARTS])
    rows = freezing.count_parameters(built)
    counts = {row.part: row.total for row in rows}
    size: dict[str, Any] = {"batch": batch_size, "b": bytes_each}
    return {
        "model": spec.name,
        "vision_language_model": config.vlm_name_or_path,
        "world_model": config.world_name_or_path if config.enable_world else None,
        "projector": config.projector if config.enable_world else None,
        "spatial_merge": config.spatial_merge,
        "latent_grid": list(config.world_grid()),
        "num_world_steps": config.num_world_steps,
        "max_world_steps": config.max_world_steps,
        "seconds_per_world_step": config.world_config.seconds_per_world_step if config.enable_world else None,
        "trained_parts": list(config.trained_parts),
        "lora": config.lora,
        "components": count_components(built),
        "parameters": [asdict(row) for row in rows],
        "total_parameters": sum(counts.values()),
        "trainable_parameters": sum(row.trainable for row in rows),
        "freeze_settings": describe_freeze_settings(
            config, counts, {**size, "num_world_steps": training_steps}, num_gpus
        ),
        "num_gpus": num_gpus,
        "tokens": token_counts(config),
        "memory": {
            "batch": batch_size,
            "num_world_steps": plan.num_world_steps,
            "training_world_steps": training_steps,
            "dtype": str(dtype_of(dtype)).removeprefix("torch."),
            "sequence": memory.sequence_length(config, plan.num_world_steps),
            "training_sequence": memory.sequence_length(config, training_steps),
            "text_tokens": memory.TEXT_TOKENS,
            **predict_answer(config, counts, {**size, "num_world_steps": plan.num_world_steps}),
        },
        "small_cards": what_fits(config, counts, quantised_counts(built), bytes_each),
        "labels": labels(spec.path),
        "notes": notes,
    }


def count_parts(config: TheWorldConfig, quantization: str | None = None, b: int = 2) -> dict[str, int]:
    """The parameters of each part of the complete model. A model is built only for a config that is not yet known.

    With `quantization`, a quantised one counts as the share of a weight of b bytes that it takes.
    """
    key = config.to_json_string(use_diff=False)
    if key not in _COUNTED:
        built = build_on_meta(config)
        counts = {row.part: row.total for row in freezing.count_parameters(built)}
        _COUNTED[key] = counts, quantised_counts(built)
    return stored_counts(*_COUNTED[key], quantization, b)


_COUNTED: dict[str, tuple[dict[str, int], dict[str, int]]] = {}  # by config


def build_on_meta(config: TheWorldConfig) -> TheWorldForConditionalGeneration:
    """The complete model on the meta device: all parameters with their shapes, and no storage."""
    with torch.device("meta"), no_init_weights():
        return TheWorldForConditionalGeneration(config, world_parts=WORLD_PARTS if config.enable_world else None)


def token_counts(config: TheWorldConfig) -> dict[str, int]:
    """Tokens of one image and of its world block."""
    tokens = {"per_image": config.vlm_config.mm_tokens_per_image + 2}  # with its begin and end
    if config.enable_world:
        tokens |= {
            "per_world_step": config.world_tokens_per_frame(),
            "world_now": config.world_token_count(0),
            "world_default": config.world_token_count(config.num_world_steps),
        }
    return tokens


def freeze_settings(config: TheWorldConfig) -> dict[str, tuple[str, ...]]:
    """What can be trained: the projector, the LoRA if there is one, and one further part at a time, or all of them."""
    always: tuple[str, ...] = ("projector",) if config.enable_world else ()
    settings = {"projector only": always} if always else {}
    if config.lora is not None:
        always = (*always, "lora")
        settings["+ LoRA" if config.enable_world else "LoRA only"] = always
    further = {"+ VAE encoder": "vae_encoder"} if config.enable_world else {}
    further |= {"+ vision": "vision", "+ language": "language"}
    if not always:
        further = {name.removeprefix("+ ") + " only": part for name, part in further.items()}
    settings |= {name: (*always, part) for name, part in further.items()}
    if always:
        settings["+ vision + language"] = (*always, "vision", "language")
    return {**settings, "all of these": (*always, *further.values())}


def describe_freeze_settings(
    config: TheWorldConfig, counts: Mapping[str, int], size: Mapping[str, Any], num_gpus: int
) -> list[dict[str, Any]]:
    """Trainable parameters of each freeze setting, and the memory of a training step."""
    strategies = STRATEGIES if num_gpus > 1 else STRATEGIES[:1]

    def run(parts: tuple[str, ...], strategy: str, checkpointing: bool) -> dict[str, Any]:
        more: dict[str, Any] = {"strategy": strategy, "num_gpus": num_gpus, "checkpointing": checkpointing}
        return as_bytes(training_run(config, counts, parts, **size, **more))

    def describe(name: str, parts: tuple[str, ...]) -> dict[str, Any]:
        trainable = sum(counts[part] for part in parts)
        return {
            "setting": name,
            "trains": list(parts),
            "trainable": trainable,
            "percent": 100 * trainable / sum(counts.values()),
            "training_memory": as_bytes(memory.training(config, counts, parts, **size)),
            "training_memory_checkpointing": as_bytes(
                memory.training(config, counts, parts, checkpointing=True, **size)
            ),
            "run_memory": {
                strategy: [run(parts, strategy, checkpointing) for checkpointing in (False, True)]
                for strategy in strategies
                if strategy == "ddp" or "vae_encoder" not in parts  # which cannot be trained where it is sharded
            },
        }

    return [describe(name, parts) for name, parts in freeze_settings(config).items()]


def predict_answer(config: TheWorldConfig, counts: Mapping[str, int], size: Mapping[str, Any]) -> dict[str, Any]:
    """Memory of an answer, in mode `tokens` and, if anything is imagined, in mode `frames`."""
    answers = {"inference": as_bytes(memory.inference(config, counts, **size))}
    if config.enable_world and size["num_world_steps"]:
        answers["inference_frames"] = as_bytes(memory.inference(config, counts, mode="frames", **size))
    return answers


def count_components(model: TheWorldForConditionalGeneration) -> list[dict[str, Any]]:
    """Parameters of each component, in the order of COMPONENTS; tied ones are counted once."""
    totals = Counter[str]()
    for name, parameter in model.named_parameters():
        totals[freezing.part_of(name, COMPONENTS)] += parameter.numel()
    return [{"component": name, "parameters": totals[name]} for name in COMPONENTS if name in totals]


def as_bytes(prediction: Prediction) -> dict[str, Any]:
    return {"peak": prediction.peak, **asdict(prediction)}
