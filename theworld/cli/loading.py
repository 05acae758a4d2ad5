"""From a model's name to a model that may be used: checks that cost nothing come before the weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from theworld.cli.console import waiting

if TYPE_CHECKING:
    from theworld.api import TheWorld

NANO_NOTE = (
    "Note: nano knows only the scenes it ships with (see `theworld nano scene`); about any other picture its answers "
    "mean nothing."
)


def note_for(model: str) -> str | None:
    """The line that goes with every answer of the shipped model; None for any other."""
    from theworld import checkpoints

    folder = Path(checkpoints.resolve(model)).resolve()
    return NANO_NOTE if folder.is_relative_to(checkpoints.SHIPPED_WEIGHTS.resolve()) else None


def has_trained_projector(model: str) -> bool:
    """Whether world tokens would mean something to this model; true as well where it has none. Loads nothing."""
    from theworld import checkpoints

    config = checkpoints.read_json(checkpoints.resolve(model))
    parts = config.get("trained_parts") or []
    return not config.get("enable_world", True) or (isinstance(parts, list) and "projector" in parts)


def check_trained(model: str, otherwise: str) -> None:
    """Stops before anything is loaded when world tokens would go through a projector that never learned.

    Args:
        otherwise: what else a person can do.
    """
    if not has_trained_projector(model):
        raise ValueError(
            f"{model} has no trained projector, so world tokens would be noise to it; train one with `theworld train`, "
            f"use a trained model (--model nano), or {otherwise}."
        )


def check_prompt(model: str, prompt: str | None, world_model: str | None = None) -> None:
    """Stops before any weights are read when the model's world cannot take a prompt."""
    if not prompt:
        return
    from theworld import checkpoints
    from theworld.api import DEFAULT_COSMOS
    from theworld.configuration import CosmosPredict2Config, TheWorldConfig
    from theworld.world_models import world_model_class

    folder = checkpoints.resolve(model)
    values = checkpoints.read_json(folder)
    name, revision = world_model or DEFAULT_COSMOS, None
    if values.get("model_type") == TheWorldConfig.model_type:
        name, revision = str(values.get("world_name_or_path")), values.get("world_revision")
    world = world_model_class(CosmosPredict2Config.model_type).from_pretrained(
        checkpoints.resolve(name, folder), parts=(), revision=None if revision is None else str(revision)
    )
    world.check_takes_prompts()


def check_device(device: str | None) -> None:
    """Raises a ValueError for a device that this machine does not have."""
    if device is None:
        return
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device {device} is no device; use cpu, cuda or cuda:N.") from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: this machine has {torch.cuda.device_count()} GPUs that torch can use.")


def load(
    model: str,
    steps: int | None = None,
    device: str | None = None,
    enable_world: bool = True,
    world_model: str | None = None,
) -> TheWorld:
    """A trained model, or two base models freshly fused, as far as a call needs it.

    Args:
        world_model: of a fresh fusion; None is the default one.

    Raises:
        ValueError: no such model, or one that cannot be read; the sentence says which.
    """
    with waiting(f"Loading {model} …"):
        from theworld import checkpoints
        from theworld.api import DEFAULT_COSMOS, TheWorld
        from theworld.configuration import TheWorldConfig

        _quieten()
        check_device(device)
        values = checkpoints.read_json(checkpoints.resolve(model))
        if values.get("model_type") == TheWorldConfig.model_type:
            return TheWorld.from_pretrained(model, num_world_steps=steps, device=device)
        return TheWorld(
            model,
            num_world_steps=steps,
            cosmos_model_name=world_model or DEFAULT_COSMOS,
            device=device,
            enable_world=enable_world,
        )


def _quieten() -> None:
    """No bars and no advice of libraries between our own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
