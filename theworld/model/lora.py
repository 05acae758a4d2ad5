"""LoRA on the language model, through peft: put in, switch off, merge. Paper: https://arxiv.org/abs/2106.09685"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def inject(language_model: nn.Module, settings: dict[str, Any]) -> None:
    """Puts a fresh LoRA, `config.lora`, on the layers of the language model that it names."""
    inject_adapter_in_model(LoraConfig(**settings), language_model)


def layers_of(module: nn.Module) -> dict[str, BaseTunerLayer]:
    """The layers that carry a LoRA, by their names inside `module`."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """Inside, `module` works as if it had no LoRA."""
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
    """Adds what the LoRA learned to the weights below it, and takes it away.

    Raises:
        ValueError: a merged weight would not be finite; nothing has changed then.
    """
    layers = layers_of(language_model)
    for name, layer in layers.items():
        if not layer.get_delta_weight("default").isfinite().all():
            raise ValueError(f"the LoRA of {name} holds values that are not finite, so it cannot be merged.")
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, layer.get_base_layer())
    del language_model.peft_config  # else peft takes the next LoRA for a second one
