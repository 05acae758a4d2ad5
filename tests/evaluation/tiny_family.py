"""Tiny trained models in the layout of the shipped ones: fused, its controls, and an untrained one."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from tests.tiny import tiny_bases, tiny_model
from theworld.model import freezing

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def tiny_family(folder: Path) -> Path:
    """Writes fused/, untrained/ and the trained controls into `folder` and returns it."""
    bases = tiny_bases(folder / "bases")
    model, _ = tiny_model(bases)
    model.save_pretrained(folder / "untrained")
    kinds = {
        "fused": (["projector", "lora"], {"lora": LORA}),
        "matched-control": (["lora"], {"lora": LORA, "enable_world": False}),
        "direct": (["vision", "language"], {"enable_world": False}),
        "trained-dummy": (["projector", "lora"], {"lora": LORA}),
        "trained-oracle": (["projector", "lora"], {"lora": LORA}),
        "frozen-random-projection": (["lora"], {"lora": LORA}),
    }
    for name, (parts, config) in kinds.items():
        model, _ = tiny_model(bases, **config)
        freezing.train_only(model, parts)
        learn_something(model, name)
        model.save_pretrained(folder / name)
    return folder


@torch.no_grad()
def learn_something(model: torch.nn.Module, name: str) -> None:
    """Moves what learns, each model's in its own way: a LoRA that did nothing would hide what is asked of whom."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
