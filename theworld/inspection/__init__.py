"""What a model consists of and what a call needs, without loading weights.

`describe_model` (parameters, trainable parts, tokens, memory), `describe_shapes` (tensor shapes from an image to the
next token) and `preflight` (repositories, disk and memory of this machine) return dicts that can be written as JSON.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theworld.inspection.parameters import describe_model
    from theworld.inspection.readiness import preflight
    from theworld.inspection.shapes import describe_shapes

__all__ = ["describe_model", "describe_shapes", "preflight"]

_MODULES = {"describe_model": "parameters", "describe_shapes": "shapes", "preflight": "readiness"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'theworld.inspection' has no attribute {name!r}")
    return getattr(import_module(f"theworld.inspection.{_MODULES[name]}"), name)
