"""A fused model of a few thousand parameters, in the published repositories' layout, for tests everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recipes.nano.gemma import build_config, build_model, build_processor, build_tokenizer
from tests.world_models.tiny import TINY_SIZE, tiny_world_folder
from theworld.model.configuration import TheWorldConfig
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.model.spec import resolve_model
from theworld.world_models.base import WORLD_PARTS

CORPUS = (
    "Which bin will the ball land in? left middle right",
    "Is the red ball on the left?",
    "yes",
    "no",
    "model user",
)


def tiny_gemma_folder(folder: Path, seed: int = 0, hidden_size: int = 32) -> Path:
    """Gemma 3 with two sliding layers and a full one, 16 tokens per image; weights, tokenizer and image processor."""
    tokenizer = build_tokenizer(CORPUS * 20, vocab_size=320)
    config = build_config(
        tokenizer,
        text={
            "hidden_size": hidden_size,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "initializer_range": 0.2,  # large enough that tokens matter to each other
        },
        vision={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TINY_SIZE,
            "patch_size": 8,
        },
        tokens_per_image=16,
    )
    model = build_model(config, tokenizer, seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            # layers at full strength, or an untrained model would repeat its last token
            torch.nn.init.zeros_(parameter)
    model.save_pretrained(folder)
    build_processor(tokenizer, TINY_SIZE, 16).save_pretrained(folder)
    return folder


def tiny_bases(folder: Path) -> dict[str, str]:
    """Both base folders, as keyword arguments of `tiny_model`."""
    return {
        "vlm_name_or_path": str(tiny_gemma_folder(folder / "gemma")),
        "world_name_or_path": str(tiny_world_folder(folder / "cosmos")),
    }


def tiny_model(bases: dict[str, str], **config: Any) -> tuple[TheWorldForConditionalGeneration, TheWorldProcessor]:
    """A new model of tiny bases, float32, with every world part loaded, and its processor."""
    values = {"world_image_size": TINY_SIZE, "num_world_steps": 2, "max_world_steps": 4, **config}
    spec = resolve_model(bases["vlm_name_or_path"], world_model=bases["world_name_or_path"], **values)
    model = spec.load(dtype=torch.float32, world_parts=WORLD_PARTS)
    return model, TheWorldProcessor.from_config(model.config)


def tiny_config(bases: dict[str, str], **values: Any) -> TheWorldConfig:
    """The config of a fusion of tiny bases, without their weights."""
    spec = resolve_model(bases["vlm_name_or_path"], world_model=bases["world_name_or_path"], **values)
    return spec.config
