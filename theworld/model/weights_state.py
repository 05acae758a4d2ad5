"""Whether the weights of a module are still those that were read: cheap enough to ask before every answer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from theworld.model import lora


class WeightsState(NamedTuple):
    """Changes when a weight is moved or replaced, a weight is written to, or a LoRA is switched.

    Attributes:
        places: where the weights are in memory; recorded graphs read them there.
        versions: how often each was written to.
        adapters: which LoRAs are active.
    """

    places: tuple[int, ...]
    versions: tuple[int, ...]
    adapters: tuple[Any, ...]


class WeightsWatch:
    """Reads the state of modules whose structure it knows, which is faster than a walk through them."""

    def __init__(self, *modules: nn.Module) -> None:
        self.roots = modules
        self._walk()

    def _walk(self) -> None:
        modules = [each for root in self.roots for each in root.modules()]
        self.children = [(each._modules, list(each._modules.values())) for each in modules if each._modules]
        self.parameters = [each._parameters for each in modules if each._parameters]
        self.tuners = [layer for root in self.roots for layer in lora.layers_of(root).values()]

    def state(self) -> WeightsState:
        if any(list(now.values()) != known for now, known in self.children):
            self._walk()
        weights = [weight for each in self.parameters for weight in each.values() if weight is not None]
        places, versions = tuple([w.data_ptr() for w in weights]), tuple([w._version for w in weights])
        adapters = {(each.disable_adapters, tuple(each.active_adapters)) for each in self.tuners}
        return WeightsState(places, versions, tuple(sorted(adapters)))
