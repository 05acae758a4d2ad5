"""Base models, strictly: every tensor of a published repository is one of the model's, and the other way round.

transformers logs missing and unexpected tensors and goes on with random ones; here either is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

from theworld import checkpoints, freezing
from theworld.configuration import CosmosPredict2Config, TheWorldConfig
from theworld.world_models import WorldModel, world_model_class

GEMMA = Gemma3Config.model_type
DIGESTED = 1024  # numbers of each tensor that a fingerprint reads


def read_gemma_config(name_or_path: str, revision: str | None = None) -> Gemma3Config:
    """The config of a Gemma 3 that sees pictures.

    Raises:
        ValueError: unreadable, or another kind of model.
    """
    kind = checkpoints.read_json(name_or_path, revision=revision).get("model_type")
    if kind != GEMMA:
        raise ValueError(
            f"{name_or_path} is a {kind!r} model; TheWorld stands on a Gemma 3 that sees pictures ({GEMMA!r}), "
            "such as google/gemma-3-4b-it."
        )
    return AutoConfig.from_pretrained(name_or_path, revision=revision)


def load_gemma(
    name_or_path: str, revision: str | None = None, dtype: torch.dtype | str | None = None, **arguments: Any
) -> Gemma3ForConditionalGeneration:
    """Gemma 3 with exactly the tensors of its repository, under today's names or the earlier `language_model.model.*`.

    Args:
        dtype: None keeps the stored type.
        arguments: passed to transformers (`device_map`, `attn_implementation`, …).

    Raises:
        ValueError: a tensor too many, too few (the head may be missing where it is tied to the embeddings) or of
            another shape; a missing or damaged file.
    """
    read_gemma_config(name_or_path, revision)
    try:
        model, found = Gemma3ForConditionalGeneration.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            **{
                **arguments,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,
            },  # collected, and refused below
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
            f"The weights of {name_or_path} do not fit the config beside them: {name} is {tuple(stored)} there and "
            f"{tuple(built)} by the config."
        )
    tied = model.config.tie_word_embeddings
    missing = sorted(key for key in found["missing_keys"] if not (tied and key == "lm_head.weight"))
    unexpected = sorted(found["unexpected_keys"])
    if missing or unexpected:
        raise ValueError(
            f"The weights of {name_or_path} do not fit the config beside them: {len(missing)} tensors missing"
            f"{first(missing)}, {len(unexpected)} unexpected{first(unexpected)}."
        )
    parameters = list(model.parameters())
    if model.get_input_embeddings().weight.is_meta and not all(parameter.is_meta for parameter in parameters):
        raise ValueError(
            f"device_map puts the input embeddings of {name_or_path} on disk; keep model.language_model.embed_tokens "
            "on a device, since world tokens join them there."
        )
    return model


def first(names: Sequence[str]) -> str:
    return f" (first: {names[0]})" if names else ""


def read_fusion_config(
    vlm_name_or_path: str,
    world_name_or_path: str,
    vlm_revision: str | None = None,
    world_revision: str | None = None,
    **values: Any,
) -> TheWorldConfig:
    """The config of a fresh fusion; bases from the Hub are named by commit, also when no revision was given.

    Args:
        values: further fields of TheWorldConfig.
    """
    vlm, world = checkpoints.resolve(vlm_name_or_path), checkpoints.resolve(world_name_or_path)
    vlm_revision = checkpoints.commit_of(vlm, vlm_revision)
    world_config = None  # without a world nothing of it is read
    if values.get("enable_world", True):
        world_revision = checkpoints.commit_of(world, world_revision, checkpoints.WORLD_INDEX_FILE)
        world_config = world_model_class(CosmosPredict2Config.model_type).read_config(world, revision=world_revision)
    return TheWorldConfig(
        vlm_config=read_gemma_config(vlm, vlm_revision),
        world_config=world_config,
        vlm_name_or_path=vlm_name_or_path,
        vlm_revision=vlm_revision,
        world_name_or_path=world_name_or_path,
        world_revision=world_revision,
        **values,
    )


def load_bases(
    config: TheWorldConfig,
    dtype: torch.dtype | str | None,
    world_parts: Sequence[str],
    inside: str | None = None,
    **vlm_arguments: Any,
) -> tuple[Gemma3ForConditionalGeneration, WorldModel | None]:
    """The two base models a config names; the world model lies where Gemma's input embeddings lie, in their type.

    Args:
        inside: folder that base names starting with `./` are relative to.
    """
    vlm = load_gemma(checkpoints.resolve(config.vlm_name_or_path, inside), config.vlm_revision, dtype, **vlm_arguments)
    if not config.enable_world:
        return vlm, None
    world = world_model_class(config.world_config.model_type).from_pretrained(
        checkpoints.resolve(config.world_name_or_path, inside),
        parts=world_parts,
        revision=config.world_revision,
        dtype=vlm.dtype,
    )
    return vlm, world.to(vlm.get_input_embeddings().weight.device)


def fingerprints(model: nn.Module, parts: Iterable[str]) -> dict[str, str]:
    """A short digest of each part's weights, whatever type they are held in: tells two bases of one shape apart."""
    digests = {}
    for part in parts:
        digest = hashlib.blake2b(digest_size=16)
        for _, parameter in freezing.parameters_of(model, [part]):
            if not parameter.is_meta:  # on disk, by device_map
                some = parameter.detach().flatten()[:DIGESTED].to(torch.bfloat16)
                digest.update(some.view(torch.int16).cpu().numpy().tobytes())
        digests[part] = digest.hexdigest()
    return digests
