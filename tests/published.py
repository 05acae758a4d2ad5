"""Base models of a few thousand parameters in exactly the published repositories' layout, and a Hub's cache of them.

The layout is described in `benchmarks/random_weights.py`, which creates the same at full size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.random_weights import TINY, publish_cosmos, published_name, write_gemma_configs, write_shards
from tests.tiny import tiny_gemma_folder
from tests.world_models.tiny import tiny_world


def rename(tensors: Mapping[str, Tensor], keys: str) -> dict[str, Tensor]:
    """Tensors of `save_pretrained` in bfloat16, under the key names of another time."""
    return {published_name(key, keys): tensor.to(torch.bfloat16) for key, tensor in tensors.items()}


def published_gemma(folder: Path, keys: str = "legacy", shards: int = 2, seed: int = 0, **changes: Any) -> Path:
    """Writes a tiny Gemma 3 repository.

    Args:
        keys: which of KEY_NAMES.
        changes: tensors by published key, to add or replace; None removes one.
    """
    tiny = tiny_gemma_folder(folder.with_name(f".{folder.name}-tiny"), seed)
    folder.mkdir(parents=True)
    read = json.loads((tiny / "config.json").read_text())
    config = {
        **{name: read[name] for name in ("boi_token_index", "eoi_token_index", "image_token_index")},
        "eos_token_id": [1, 5],
        "mm_tokens_per_image": 16,
        "text_config": {**TINY.gemma["text_config"], "vocab_size": read["text_config"]["vocab_size"]},
        "vision_config": TINY.gemma["vision_config"],
    }
    write_gemma_configs(folder, config)
    tensors: dict[str, Any] = {**rename(load_file(tiny / "model.safetensors"), keys), **changes}
    write_shards(folder, {key: tensor for key, tensor in tensors.items() if tensor is not None}, "model", shards)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):  # greedy, as tests want it
        (tiny / name).rename(folder / name)
    return folder


def published_cosmos(folder: Path, seed: int = 0) -> Path:
    """Writes a tiny Cosmos-Predict2 repository: a diffusers pipeline, and files that we do not read."""
    tiny_world(seed).save_pretrained(folder, max_shard_size="20KB")
    for ours in ("rollout_config.json", "prompt_embeds.safetensors"):
        (folder / ours).unlink()
    publish_cosmos(folder)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "model-00001-of-00004.safetensors").write_bytes(b"never read")
    return folder


def cache_as_hub(folder: Path, repository: str, cache: Path, commit: str) -> str:
    """Puts `folder` into a Hub cache as `repository`, whose main is `commit`; returns the repository's name."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir(exist_ok=True)
    folder.rename(place / "snapshots" / commit)
    return repository
