"""Tiny trained models in one folder, as the shipped ones lie: fused, its controls, and one that never learned."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import tiny_bases, tiny_model
from theworld import freezing

CONTROLS = ("matched-control", "direct")


def tiny_family(folder: Path) -> Path:
    """Writes fused/, matched-control/, direct/ and untrained/ into `folder` and returns it."""
    bases = tiny_bases(folder / "bases")
    model, _ = tiny_model(bases)
    model.save_pretrained(folder / "untrained")
    freezing.train_only(model, ["projector"])
    model.save_pretrained(folder / "fused")
    for name in CONTROLS:
        control, _ = tiny_model(bases, enable_world=False)
        freezing.train_only(control, ["language"])
        control.save_pretrained(folder / name)
    return folder
