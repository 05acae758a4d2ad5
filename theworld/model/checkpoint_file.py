"""Checkpoints in one file, with trained parts and optimiser state, for custom training loops.

`theworld.training` writes its own checkpoints, which are folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from theworld.model.freezing import count_parameters, fingerprints, part_of
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.saving import check_finite
from theworld.storage.adapters import check_tensors, copy_tensors, read_pickle
from theworld.storage.files import atomic_file


def save_checkpoint(
    model: TheWorldForConditionalGeneration,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None = None,
    epoch: int | None = None,
    step: int | None = None,
) -> None:
    """Writes the trained parts, the optimiser's state, epoch and step to one file, atomically."""
    tensors = model.adapter_tensors()
    check_finite(tensors)
    content = {
        "model": {name: tensor.detach().cpu() for name, tensor in tensors.items()},
        "bases": fingerprints(model, parts_outside(model, tensors)),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "epoch": epoch,
        "step": step,
    }
    with atomic_file(path) as unfinished:
        torch.save(content, unfinished)


def load_checkpoint(
    model: TheWorldForConditionalGeneration,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, int | None]:
    """Loads a file of `save_checkpoint`, as described in `TheWorld.load_checkpoint`."""
    content = read_pickle(Path(path))
    named = all(isinstance(content.get(name), dict) for name in ("model", "bases"))
    if not named or not {"optimizer", "epoch", "step"} <= set(content):
        raise ValueError(f"{path} was not written by save_checkpoint.")
    expected = model.adapter_tensors()
    check_tensors(expected, content["model"], str(path))
    bases = fingerprints(model, parts_outside(model, expected))
    for part in bases.keys() & content["bases"].keys():
        if bases[part] != content["bases"][part]:
            raise ValueError(
                f"{path} was saved with other base models: its frozen part {part!r} has different weights."
            )
    if optimizer is not None:
        if content["optimizer"] is None:
            raise ValueError(f"{path} has no optimiser state; load it without optimizer=.")
        try:
            optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} has the state of another optimiser, or of other parameters ({error}).") from error
    copy_tensors(expected, content["model"], str(path))
    return {"epoch": content["epoch"], "step": content["step"]}


def parts_outside(model: TheWorldForConditionalGeneration, tensors: Iterable[str]) -> list[str]:
    """Parts in memory that a checkpoint of these tensors does not contain, so that they must not differ on loading."""
    stored = {part_of(name) for name in tensors}
    return [row.part for row in count_parameters(model) if row.part not in stored]
