"""Base models of a few thousand parameters in exactly the published repositories' layout, and a Hub's cache of them.

`google/gemma-3-4b-it` holds sharded safetensors with an index, bfloat16, key names from before transformers 4.52, a
short config (`rope_scaling`, `torch_dtype`, `image_token_index`), and the processor in `preprocessor_config.json`,
`processor_config.json` and `chat_template.json`. `nvidia/Cosmos-Predict2-…` is a diffusers pipeline with a sharded
transformer and components that we never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import tiny_gemma_folder
from tests.world_models.tiny import TINY_SIZE, tiny_world
from theworld.nano.gemma import CHAT_TEMPLATE

# what stands in front of a tensor's name inside the language model, the vision tower and the image projector
KEY_NAMES = {
    "legacy": ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "legacy without vision_model": ("language_model.model.", "vision_tower.", "multi_modal_projector."),
    "today's": ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "today's with vision_model": (
        "model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector.",
    ),
}  # fmt: skip
TINY_TEXT = {
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "model_type": "gemma3_text",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 16,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 64,
    "sliding_window_pattern": 3,
}
TINY_VISION = {
    "hidden_size": 32,
    "image_size": TINY_SIZE,
    "intermediate_size": 48,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "vision_use_head": False,
}


def write_shards(folder: Path, tensors: Mapping[str, Tensor], name: str, shards: int) -> None:
    """`name-0000i-of-0000n.safetensors` and their index, as save_pretrained of both libraries lays them out."""
    names = sorted(tensors)
    files = [f"{name}-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {key: files[i * shards // len(names)] for i, key in enumerate(names)}
    for file in files:
        save_file({key: tensors[key] for key in names if weight_map[key] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def rename(tensors: Mapping[str, Tensor], keys: str) -> dict[str, Tensor]:
    """Tensors of `save_pretrained` under the key names of another time."""
    renamed = {}
    for key, tensor in tensors.items():
        key = key.replace("vision_tower.vision_model.", "vision_tower.").removeprefix("model.")
        for own, published in zip(KEY_NAMES["legacy without vision_model"], KEY_NAMES[keys], strict=True):
            if key.startswith(own):
                key = published + key.removeprefix(own)
                break
        renamed[key] = tensor.to(torch.bfloat16)
    return renamed


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))


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
        "architectures": ["Gemma3ForConditionalGeneration"],
        **{name: read[name] for name in ("boi_token_index", "eoi_token_index", "image_token_index")},
        "eos_token_id": [1, 5],
        "initializer_range": 0.02,
        "mm_tokens_per_image": 16,
        "model_type": "gemma3",
        "text_config": {**TINY_TEXT, "vocab_size": read["text_config"]["vocab_size"]},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": TINY_VISION,
    }
    write_json(folder / "config.json", config)
    tensors: dict[str, Any] = {**rename(load_file(tiny / "model.safetensors"), keys), **changes}
    write_shards(folder, {key: tensor for key, tensor in tensors.items() if tensor is not None}, "model", shards)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tiny / name).rename(folder / name)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "processor_config.json", {"image_seq_length": 16, "processor_class": "Gemma3Processor"})
    image = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 16,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": TINY_SIZE, "width": TINY_SIZE},
    }
    write_json(folder / "preprocessor_config.json", image)
    return folder


def published_cosmos(folder: Path, seed: int = 0) -> Path:
    """Writes a tiny Cosmos-Predict2 repository: a diffusers pipeline, beside files that we leave alone."""
    tiny_world(seed).save_pretrained(folder, max_shard_size="20KB")
    for ours in ("rollout_config.json", "prompt_embeds.safetensors"):
        (folder / ours).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "_diffusers_version": "0.34.0.dev0",
        "safety_checker": [None, None],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    write_json(folder / "model_index.json", index)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "model-00001-of-00004.safetensors").write_bytes(b"never read")
    (folder / "model-720p-16fps.pt").write_bytes(b"never read")
    return folder


def cache_as_hub(folder: Path, repository: str, cache: Path, commit: str) -> str:
    """Puts `folder` into a Hub cache as `repository`, whose main is `commit`; returns the repository's name."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir(exist_ok=True)
    folder.rename(place / "snapshots" / commit)
    return repository
