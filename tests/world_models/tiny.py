"""A world model of a few thousand parameters on the real classes, and a folder of it, for tests everywhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from string import ascii_letters
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from theworld.world_models.configuration import CosmosPredict2Config
from theworld.world_models.cosmos_predict2 import CosmosPredict2
from theworld.world_models.prompts import DEFAULT_NEGATIVE_PROMPT

TINY_SIZE = 32  # pixels a side: 4×4 latent cells


def tiny_world_config(**changes: Any) -> CosmosPredict2Config:
    """Four latent channels with a mean and spread of their own, two transformer layers; `changes` replace fields."""
    fields: dict[str, Any] = {
        "vae": {
            "base_dim": 4,
            "dim_mult": [1, 2, 2, 2],
            "num_res_blocks": 1,
            "z_dim": 4,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [0.5, 0.6, 0.7, 0.8],
        },
        "transformer": {
            "in_channels": 5,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "mlp_ratio": 2.0,
            "text_embed_dim": 8,
            "adaln_lora_dim": 4,
            "max_size": [8, 8, 8],
            "patch_size": [1, 2, 2],
            "rope_scale": [1.0, 3.0, 3.0],
            "concat_padding_mask": True,
            "extra_pos_embed_type": None,
        },
        "text_tokens": 6,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
    }
    return CosmosPredict2Config(**{**fields, **changes})


def tiny_world(seed: int = 0, **changes: Any) -> CosmosPredict2:
    """A tiny world model, all parts, the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CosmosPredict2(tiny_world_config(**changes)).eval()


def tiny_world_folder(folder: Path, max_shard_size: int | str = "5GB", seed: int = 0) -> Path:
    """Writes a tiny world model into `folder` and returns it."""
    tiny_world(seed).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def tiny_published_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny world model in the layout NVIDIA publishes: a T5 and its tokenizer, and nothing that only we write."""
    tiny_world_folder(folder, seed=seed)
    (folder / "rollout_config.json").unlink()
    (folder / "prompt_embeds.safetensors").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    words = sorted({f"▁{word}" for word in re.findall(r"\w+", DEFAULT_NEGATIVE_PROMPT)})
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": -99.0, "▁": -5.0}
    scores |= dict.fromkeys(words, -2.0) | dict.fromkeys(ascii_letters, -6.0)
    pieces = list(scores.items())
    T5TokenizerFast(pieces, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer")
    config = T5Config(
        vocab_size=len(pieces), d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    return folder


def hub_copy(folder: Path, cache: Path, name: str) -> str:
    """`folder` as the Hub's cache holds a repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    return name


def tiny_frames(n: int = 1, num_frames: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth random frames (n, 3, F, 32, 32) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, num_frames, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (num_frames, TINY_SIZE, TINY_SIZE), mode="trilinear")
