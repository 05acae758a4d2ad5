"""Saving a model: which parts an adapter holds, and full exports with both base models."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from theworld.model import freezing, lora
from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import dtype_of
from theworld.model.processing import TheWorldProcessor
from theworld.quantization import is_quantised
from theworld.storage.adapters import not_finite
from theworld.storage.files import atomic_folder, write_tensors
from theworld.storage.hub import ADAPTER_FILE, read_json, rebase_path, resolve
from theworld.world_models.base import PROMPT_EMBEDS, WORLD_PARTS

if TYPE_CHECKING:
    from theworld.model.modeling import TheWorldForConditionalGeneration

logger = logging.getLogger(__name__)

VLM_FOLDER, WORLD_FOLDER = "vlm", "world"  # of a full export


def parts_to_save(model: TheWorldForConditionalGeneration, full: bool = False) -> list[str]:
    """Parts that an adapter must hold: trainable now, trained before, or changed since loading in another way."""
    if full and any(map(is_quantised, model.parameters())):
        raise ValueError(
            "A full export needs the base models as they are stored; load the model without quantization to export it."
        )
    has_lora = bool(lora.layers_of(model.language_model))
    if has_lora and model.config.lora is None:
        raise ValueError(
            "The language model has LoRA layers that were not added by lora=, so this model cannot be saved; call "
            "peft's merge_and_unload() first, or save the adapter with peft."
        )
    if any(layer.merged for layer in lora.layers_of(model.language_model).values()):
        raise ValueError(
            "The LoRA is merged in place (by peft's merge), so a saved model would apply it twice; call merge_lora() "
            "to merge it for good, or peft's unmerge first."
        )
    changed = set() if model.loaded_weights is None else model.loaded_weights.changed(model)
    parts = {*model.config.trained_parts, *freezing.trained_parts(model), *changed}
    if not full and (lost := [part for part in freezing.PARTS if part in parts - set(freezing.TRAINABLE_PARTS)]):
        raise ValueError(
            f"The weights of {' and '.join(lost)} were changed, which an adapter cannot hold; save with full=True."
        )
    if not has_lora:
        parts.discard("lora")  # merged by peft's own merge_and_unload
    return [part for part in freezing.PARTS if part in parts]


def save(
    model: TheWorldForConditionalGeneration,
    save_directory: str | os.PathLike[str],
    full: bool,
    dtype: torch.dtype | str | None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what `TheWorldForConditionalGeneration.save_pretrained` describes."""
    if dtype is not None and not full:
        raise ValueError("dtype is the dtype of exported base models; pass it with full=True.")
    config = copy.deepcopy(model.config)
    config.trained_parts = parts_to_save(model, full)
    bases_changed = bool(set(config.trained_parts) - set(freezing.BETWEEN_BASES))
    if full:  # the other parts are in the exported bases
        config.trained_parts = [part for part in config.trained_parts if part in freezing.BETWEEN_BASES]
    if not lora.layers_of(model.language_model):
        config.lora = None
    parameters = dict(freezing.parameters_of(model, config.trained_parts))
    written = {name: (tensors or parameters)[name] for name in parameters}
    saved = {**written, **(dict(model.named_parameters()) if full else {})}
    check_complete(saved)
    check_finite(saved)
    if not config.reads_world_tokens and "projector" in config.trained_parts:
        config.reads_world_tokens = not model.projector.is_initial(config, model.text_embedding_rms())
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.vlm_config._name_or_path = config.vlm_name_or_path  # not the folder that it was loaded from
    base_dir = model.bases_folder
    if base_dir is not None and Path(base_dir).resolve() != Path(save_directory).resolve():
        config.vlm_name_or_path = rebase_path(config.vlm_name_or_path, base_dir)
        config.world_name_or_path = rebase_path(config.world_name_or_path, base_dir)
    with atomic_folder(save_directory) as folder:
        if full:
            export_bases(model, folder, config, export_dtype(model, dtype, bases_changed), dtype is not None)
        config.save_pretrained(folder)
        write_tensors(folder / ADAPTER_FILE, written)
        if model.world is not None and model.world.embedded_prompts and not full:  # a full export's world has them
            write_tensors(folder / PROMPT_EMBEDS, model.world.embedded_prompts)


def check_complete(tensors: Mapping[str, Tensor]) -> None:
    """Raises a ValueError for the first tensor that is empty or a shard, as FSDP and DeepSpeed's ZeRO-3 keep them."""
    for name, tensor in tensors.items():
        if not tensor.numel() or type(tensor.data) is not Tensor:
            raise ValueError(
                f"{name} is sharded over several processes, so this process cannot save it; call save_model of the "
                "trainer, in all processes."
            )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises a ValueError for the first tensor with a value that is infinite or no number."""
    if name := not_finite(tensors):
        raise ValueError(
            f"{name} has values that are infinite or no number, so nothing is saved: the training diverged. Resume it "
            "from an earlier checkpoint, or repeat it, with a smaller learning_rate."
        )


def export_dtype(
    model: TheWorldForConditionalGeneration, dtype: torch.dtype | str | None, bases_changed: bool
) -> torch.dtype:
    """The dtype of exported base models: the given one, that of the stored Gemma, or, if weights changed, memory's."""
    if dtype is None and not bases_changed:
        stored = resolve(model.config.vlm_name_or_path, model.bases_folder)
        values = read_json(stored, revision=model.config.vlm_revision)
        dtype = values.get("dtype") or values.get("torch_dtype")
    exported = model.dtype if dtype is None else dtype_of(dtype)
    if exported != model.dtype:
        logger.info("exporting the base models in %s; in memory they are %s", exported, model.dtype)
    return exported


def export_bases(
    model: TheWorldForConditionalGeneration,
    folder: Path,
    config: TheWorldConfig,
    dtype: torch.dtype,
    dtype_is_given: bool,
) -> None:
    """Writes both base models and Gemma's processor into `folder`, and names them in `config`."""
    if config.lora is not None:
        raise ValueError(
            "A full export needs the LoRA merged into the weights: call merge_lora() first, or save the adapter alone."
        )
    if model.world is not None:
        model.world.load_parts(*WORLD_PARTS)  # without its decoder an export could not show imagined frames
    in_memory = model.vlm.config.dtype
    world = model.world or nn.Module()
    # Gemma may be wider or narrower than the world model, which is rounded only if the caller asks for it.
    exact = (one for one in (dtype, torch.bfloat16) if is_exact(world, one))
    world_dtype = dtype if dtype_is_given else min(exact, key=lambda one: one.itemsize, default=model.dtype)
    try:
        with freezing.cast(model.vlm, dtype), freezing.cast(world, world_dtype):
            model.vlm.save_pretrained(folder / VLM_FOLDER)
            if model.world is not None:
                model.world.save_pretrained(folder / WORLD_FOLDER)
                config.world_name_or_path, config.world_revision = f"./{WORLD_FOLDER}", None
    finally:
        model.vlm.config.dtype = in_memory  # transformers sets it on saving
    config.vlm_name_or_path, config.vlm_revision = f"./{VLM_FOLDER}", None
    config.dtype = config.vlm_config.dtype = dtype
    TheWorldProcessor.from_config(model.config, model.bases_folder).write_base(folder / VLM_FOLDER)


def is_exact(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every weight of `module` keeps its value in `dtype`."""
    weights = (parameter.detach() for parameter in module.parameters() if parameter.is_floating_point())
    return all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in weights)
