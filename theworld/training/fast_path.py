"""The fast path of training on a GPU: compiled layers and, if only the projector learns, a loss by groups of rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from theworld.model.frozen_loss import COMPILE_OPTIONS, FrozenLoss
from theworld.model.modeling import TheWorldForConditionalGeneration

logger = logging.getLogger(__name__)

FAST_PATHS = ("auto", "on", "off")
MINIMUM_STEPS = 100  # of "auto": compiling takes about as long as 100 steps of a projector
BEFORE_THE_LANGUAGE_MODEL = {"projector", "vae_encoder"}  # parts whose gradients come from the world tokens alone
VISION_LAYER = "SiglipEncoderLayer"


def why_not(device: torch.device, sharded: bool, precision: str) -> str | None:
    """Why a run cannot use the fast path, or None."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if sharded:
        return "FSDP and DeepSpeed gather the weights of layers themselves"
    if precision != "bf16":
        return "it needs mixed_precision bf16"
    return None


def uses_fast_path(wanted: str, reason: str | None, steps: int, processes: int = 1) -> bool:
    """Whether a run of `steps` optimizer steps uses the fast path; `reason` is `why_not`'s.

    "auto" leaves runs of several processes alone, in which it has not been measured.

    Raises:
        ValueError: if it is wanted "on" and not possible.
    """
    if wanted == "on" and reason is not None:
        raise ValueError(f"fast_path is on, but {reason}; set it to auto or off.")
    return wanted == "on" or (wanted == "auto" and reason is None and steps >= MINIMUM_STEPS and processes == 1)


def enable(model: TheWorldForConditionalGeneration, trained: Sequence[str]) -> None:
    """Compiles the layers of a model on a GPU whose parts `trained` learn."""
    logger.info("fast_path: layers are compiled, which takes the first seconds of the run")
    for layer in vision_layers(model):
        layer.compile(options=COMPILE_OPTIONS)
    if set(trained) <= BEFORE_THE_LANGUAGE_MODEL:
        model.frozen_loss = FrozenLoss(model.vlm)
    else:
        for layer in model.vlm.model.language_model.layers:
            layer.compile(options=COMPILE_OPTIONS)


def vision_layers(model: TheWorldForConditionalGeneration) -> list[nn.Module]:
    return [module for module in model.vlm.model.vision_tower.modules() if type(module).__name__ == VISION_LAYER]
