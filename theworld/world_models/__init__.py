"""World models: what turns a picture into latents of now and of the next moments."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from theworld.world_models.base import WorldModel

# a world config's model_type -> the class that builds it, as "module:class", imported when it is first asked for
WORLD_MODELS: dict[str, str] = {"cosmos_predict2": "theworld.world_models.cosmos_predict2:CosmosPredict2"}


def world_model_class(model_type: str) -> type[WorldModel]:
    """The class registered under `model_type` (`config.world_config.model_type`).

    Raises:
        ValueError: nothing is registered under that name.
    """
    if model_type not in WORLD_MODELS:
        raise ValueError(f"There is no world model {model_type!r}; choose one of {', '.join(WORLD_MODELS)}.")
    module, _, name = WORLD_MODELS[model_type].partition(":")
    return cast(type[WorldModel], getattr(import_module(module), name))


__all__ = ["WORLD_MODELS", "WorldModel", "world_model_class"]
