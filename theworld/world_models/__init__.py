"""World models, which turn an image into latents of the present and of the imagined future."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from theworld.world_models.base import WorldModel

# model_type of a world config -> its class as "module:class", imported on first use
WORLD_MODELS: dict[str, str] = {"cosmos_predict2": "theworld.world_models.cosmos_predict2:CosmosPredict2"}


def world_model_class(model_type: str) -> type[WorldModel]:
    """The class registered under `model_type` (`config.world_config.model_type`)."""
    if model_type not in WORLD_MODELS:
        raise ValueError(f"Unknown world model {model_type!r}; choose one of {', '.join(WORLD_MODELS)}.")
    module, _, name = WORLD_MODELS[model_type].partition(":")
    return cast(type[WorldModel], getattr(import_module(module), name))
