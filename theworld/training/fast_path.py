"""The fast path of training on a GPU: compiled layers and, if only the projector learns, a loss by groups of rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from theworld.compilation import can_compile, compile_function, compiling
from theworld.fast_path import without_gpu
from theworld.model.frozen_loss import FrozenLoss
from theworld.model.gemma_vision import read_images, vision_layer
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.quantization import QUANTISED

logger = logging.getLogger(__name__)

MINIMUM_STEPS = 100  # of "auto": compiling takes about as long as 100 steps of a projector
BEFORE_THE_LANGUAGE_MODEL = {"projector", "vae_encoder"}  # parts whose gradients come from the world tokens alone


def why_not(device: torch.device, sharded: bool, precision: str, quantised: bool = False) -> str | None:
    """Why a run cannot use the fast path, or None."""
    if reason := without_gpu(device):
        return reason
    if quantised:
        return QUANTISED
    if not can_compile():
        return "torch.compile needs Triton and a C compiler"
    if sharded:
        return "FSDP and DeepSpeed gather the weights of layers themselves"
    if precision != "bf16":
        return "it needs mixed_precision bf16"
    return None


def pays(steps: int, processes: int) -> bool:
    """Whether the rest of a run is long enough; runs of several processes have not been measured."""
    return steps >= MINIMUM_STEPS and processes == 1


def enable(model: TheWorldForConditionalGeneration, trained: Sequence[str]) -> None:
    """Compiles the layers of a model whose parts `trained` learn, if their gradients are checked or not needed."""
    logger.info("fast_path: layers are compiled, which takes the first seconds of the run")
    if "vision" not in trained:
        model.frozen_vision = frozen_vision(model.vlm.model)
    if set(trained) <= BEFORE_THE_LANGUAGE_MODEL:
        model.frozen_loss = FrozenLoss(model.vlm)


def frozen_vision(gemma: Any) -> Callable[[Tensor], Tensor]:
    """What computes image features (n, tokens, D) of pixels (n, 3, H, W), without gradients."""
    layer_function = compile_function(vision_layer)

    @torch.no_grad()
    def features(pixel_values: Tensor) -> Tensor:
        with compiling():
            return read_images(gemma, layer_function, pixel_values, dynamic=True)

    return features
