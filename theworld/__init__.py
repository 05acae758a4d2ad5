"""TheWorld: a vision-language model that sees a few moments ahead.

The public names are loaded when they are first used, so that `import theworld` costs neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> the module that holds it
_PUBLIC: dict[str, str] = {
    "HFDatasetWrapper": "theworld.datasets.samples",
    "TheWorld": "theworld.inference.pipeline",
    "TheWorldConfig": "theworld.model.configuration",
    "TheWorldDataset": "theworld.datasets.samples",
    "TheWorldForConditionalGeneration": "theworld.model.modeling",
    "TheWorldProcessor": "theworld.model.processing",
    "TrainingConfig": "theworld.training.config",
}

__all__ = [
    "__version__",
    "HFDatasetWrapper",
    "TheWorld",
    "TheWorldConfig",
    "TheWorldDataset",
    "TheWorldForConditionalGeneration",
    "TheWorldProcessor",
    "TrainingConfig",
]

if TYPE_CHECKING:  # so that editors and type checkers see what __getattr__ finds
    from theworld.datasets.samples import HFDatasetWrapper, TheWorldDataset
    from theworld.inference.pipeline import TheWorld
    from theworld.model.configuration import TheWorldConfig
    from theworld.model.modeling import TheWorldForConditionalGeneration
    from theworld.model.processing import TheWorldProcessor
    from theworld.training.config import TrainingConfig


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'theworld' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
