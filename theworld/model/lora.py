"""LoRA on the language model, through peft: inject, disable, merge. Paper: https://arxiv.org/abs/2106.09685"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:  # peft is imported inside functions, since a model without a LoRA does not need it to answer
    from peft.tuners.tuners_utils import BaseTunerLayer


class LoraLock:
    """Keeps threads from computing with a LoRA while another one has disabled it; copies have a lock of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[LoraLock], tuple[()]]:
        return LoraLock, ()


def held(language_model: nn.Module) -> AbstractContextManager[None]:
    """A context in which no other thread disables or enables the LoRA; does nothing where there is none."""
    return vars(language_model).get("lora_lock", nullcontext())


def inject(language_model: nn.Module, settings: dict[str, Any]) -> None:
    """Adds a newly initialised LoRA with the settings of `config.lora` to the language model."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(**settings), language_model)
    language_model.lora_lock = LoraLock()  # type: ignore[assignment]  # a plain attribute


def layers_of(module: nn.Module) -> dict[str, BaseTunerLayer]:
    """The layers with a LoRA, by their names in `module`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """A context in which the LoRA of `module`, a language model, is disabled; other threads wait with their answers."""
    with held(module):
        layers = layers_of(module).values()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


@torch.no_grad()
def merge(language_model: nn.Module) -> None:
    """Merges the LoRA into the weights of its layers, and removes it; nothing changes if a value is not finite."""
    layers = layers_of(language_model)
    for name, layer in layers.items():
        if not layer.get_delta_weight("default").isfinite().all():
            raise ValueError(f"The LoRA of {name} has non-finite values, so it cannot be merged.")
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, layer.get_base_layer())
    del language_model.peft_config  # otherwise peft would add the next LoRA as a second one
