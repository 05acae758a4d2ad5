"""Strict loading of base models and adapters: the stored tensors are exactly those of the model.

transformers logs missing and unexpected tensors and continues with random ones; here either is an error.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import BitsAndBytesConfig, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedConfig
from transformers import __version__ as transformers_version

from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import dtype_of
from theworld.model.spec import BASE, resolve_model
from theworld.quantization import bitsandbytes_config, check_offload, use_unpacked_weights
from theworld.storage.adapters import check_names, read_tensors
from theworld.storage.hub import find_base_dir, read_json, resolve, split_checkpoint_name
from theworld.world_models import world_model_class
from theworld.world_models.base import WorldModel

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
# keys of published configs that transformers keeps as plain attributes, read or not; vision_use_head is published as
# false, which matches the default of older transformers versions
GEMMA_KEYS_KEPT = {"model_type", "eos_token_id", "cache_implementation", "sliding_window_pattern", "vision_use_head"}


def gemma_config(values: Mapping[str, Any], name_or_path: str, revision: str | None = None) -> Gemma3Config:
    """The config of a Gemma 3 that reads images, from the content of its `config.json`."""
    kind = values.get("model_type")
    if kind != BASE:
        raise ValueError(
            f"{name_or_path} is a {kind!r} model; TheWorld needs a Gemma 3 that reads images ({BASE!r}), such as "
            "google/gemma-3-4b-it."
        )
    commit = revision if revision and COMMIT.fullmatch(revision) else None
    config = Gemma3Config.from_dict(copy.deepcopy(dict(values)), name_or_path=name_or_path, _commit_hash=commit)
    unread = sorted(unused_keys(values, config))
    if unread:
        logger.warning(
            "The config of %s has keys that transformers %s does not read: %s. They are ignored; if the model's "
            "answers are wrong, use a newer transformers.",
            name_or_path,
            transformers_version,
            ", ".join(unread),
        )
    return config


def unused_keys(values: Mapping[str, Any], config: PreTrainedConfig) -> Iterator[str]:
    """Keys of a `config.json` that `config`, which was made from it, does not use; nested ones as `text_config.key`.

    transformers turns an unknown key into an attribute. In the config of a base model this is not a typing error, as it
    would be in ours, but the key of a newer version, whose model may differ.
    """
    default = type(config)()
    for key, value in values.items():
        part = vars(config).get(key)
        if isinstance(part, PreTrainedConfig) and isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in unused_keys(value, part))
        elif key in vars(config) and key not in {*vars(default), *dir(default), *GEMMA_KEYS_KEPT}:
            yield key


def load_gemma(
    name_or_path: str,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    config: Gemma3Config | None = None,
    **arguments: Any,
) -> Gemma3ForConditionalGeneration:
    """Loads a Gemma 3 with exactly the tensors of its repository, under current or earlier names of transformers.

    Args:
        dtype: None keeps the stored dtype.
        config: its configuration, if it has been read already.
        arguments: passed to transformers (`device_map`, `attn_implementation`, …).
    """
    if config is None:
        config = gemma_config(read_json(name_or_path, revision=revision), name_or_path, revision)
    try:
        model, found = Gemma3ForConditionalGeneration.from_pretrained(
            name_or_path,
            config=config,  # as a path transformers would read config.json again
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            # mismatched sizes are collected, and reported below
            **{**arguments, "output_loading_info": True, "ignore_mismatched_sizes": True},
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {name_or_path} are damaged or cut short ({error}); download or save them again."
        ) from error
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"The weights of {name_or_path} cannot be read: {reason}.") from error
    for name, stored, built in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"The weights of {name_or_path} do not match its config: {name} is {tuple(stored)} in the file and "
            f"{tuple(built)} by the config."
        )
    tied = model.config.tie_word_embeddings
    missing = [key for key in found["missing_keys"] if not (tied and key == "lm_head.weight")]
    check_names(missing, found["unexpected_keys"], f"The weights of {name_or_path} do not match its config")
    parameters = list(model.parameters())
    if model.get_input_embeddings().weight.is_meta and not all(parameter.is_meta for parameter in parameters):
        raise ValueError(
            f"device_map puts the input embeddings of {name_or_path} on disk; keep model.language_model.embed_tokens "
            "on a device, where world tokens are inserted."
        )
    return model


def load_bases(
    config: TheWorldConfig,
    dtype: torch.dtype | str | None,
    world_parts: Sequence[str],
    base_dir: str | None = None,
    *,
    vlm_config: Gemma3Config | None = None,
    world_config: PreTrainedConfig | None = None,
    device: torch.device | None = None,
    quantization_config: str | BitsAndBytesConfig | None = None,
    world_model_offload: str = "none",
    **vlm_arguments: Any,
) -> tuple[Gemma3ForConditionalGeneration, WorldModel | None]:
    """Loads the two base models that a config names.

    The world model is put on the device of Gemma's input embeddings, in their dtype.

    Args:
        base_dir: folder that base names starting with `./` are relative to.
        vlm_config, world_config: the configurations in the bases' own folders, if they have been read already.
        device: where the weights are read to; None is the CPU, unless `device_map` places Gemma's layers.
        quantization_config: "4bit", "8bit", or transformers' settings for bitsandbytes; None keeps the stored weights.
        world_model_offload: "cpu" keeps the world model's weights in CPU memory while they are not used.
    """
    check_offload(world_model_offload, quantization_config)
    quantised = None
    if quantization_config is not None:
        computed = config.vlm_config.dtype if dtype in (None, "auto") else dtype_of(dtype)
        quantised = vlm_arguments["quantization_config"] = bitsandbytes_config(quantization_config, computed)
    if device is not None:
        vlm_arguments["device_map"] = {"": device}
    vlm = load_gemma(
        resolve(config.vlm_name_or_path, base_dir), config.vlm_revision, dtype, vlm_config, **vlm_arguments
    )
    if quantised is not None:
        forget_quantization(vlm, quantised)
        use_unpacked_weights(vlm)
    if not config.enable_world:
        return vlm, None
    world = world_model_class(config.world_config.model_type).from_pretrained(
        resolve(config.world_name_or_path, base_dir),
        parts=world_parts,
        revision=config.world_revision,
        dtype=vlm.dtype,
        config=world_config,
        device=vlm.get_input_embeddings().weight.device,
        quantization=quantised,
        offload=world_model_offload,
    )
    return vlm, world


def forget_quantization(vlm: Gemma3ForConditionalGeneration, quantised: BitsAndBytesConfig) -> None:
    """Removes from a config what is not to be saved with an adapter, and says to peft how the layers are quantised."""
    del vlm.config.quantization_config
    vlm.model.language_model.is_loaded_in_4bit = quantised.load_in_4bit
    vlm.model.language_model.is_loaded_in_8bit = quantised.load_in_8bit


def read_adapter(
    name: str, checkpoint_name: str | None = None, revision: str | None = None, config: TheWorldConfig | None = None
) -> tuple[TheWorldConfig, dict[str, Tensor], str | None]:
    """Reads an adapter: its config (unless `config` replaces it), its tensors, and its `find_base_dir`."""
    model = resolve(name)
    subfolder, filename = split_checkpoint_name(checkpoint_name)
    if config is None:
        spec = resolve_model(name, revision=revision, checkpoint_name=checkpoint_name)
        spec.check_fused()
        config = spec.config
    tensors = read_tensors(model, f"{subfolder}{filename}", revision)
    bases = (config.vlm_name_or_path, config.world_name_or_path)
    return config, tensors, find_base_dir(model, bases, revision, subfolder)
