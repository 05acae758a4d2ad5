"""Tiny trained models in one folder, as the shipped ones lie: fused, its controls, and one that never learned."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import tiny_bases, tiny_model
from theworld import freezing

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def tiny_family(folder: Path) -> Path:
    """Writes fused/, matched-control/, direct/ and untrained/ into `folder` and returns it."""
    bases = tiny_bases(folder / "bases")
    model, _ = tiny_model(bases)
    model.save_pretrained(folder / "untrained")
    kinds = {
        "fused": (["projector", "lora"], {"lora": LORA}),
        "matched-control": (["lora"], {"lora": LORA, "enable_world": False}),
        "direct": (["vision", "language"], {"enable_world": False}),
    }
    for name, (parts, config) in kinds.items():
        model, _ = tiny_model(bases, **config)
        freezing.train_only(model, parts)
        model.save_pretrained(folder / name)
    return folder
