"""What makes a model fit on a small card: `quantization` of the frozen base models, and `world_model_offload`.

With bitsandbytes, a linear layer holds 4 or 8 bits per weight. Those of Gemma's language model and vision tower and of
the world transformer's blocks are quantised while they are read, one weight at a time. Embeddings, norms, the VAE and
what is trained keep the type of the model.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from theworld.fast_path import check_fast_path, uses_fast_path

if TYPE_CHECKING:  # a config is read before the libraries are imported
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

PACKAGE = "bitsandbytes"
QUANTIZATIONS: Mapping[str, dict[str, Any]] = {
    # the settings of https://huggingface.co/papers/2305.14314
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8bit": {"load_in_8bit": True},
}
# bytes of one weight: a block of 64 has a scale of 8 bits, and 256 of those have one of 32; or a row has one of 32
BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
WORLD_BLOCKS = "transformer_blocks"
WORLD_KEPT = r".*norm\d"  # adaptive norms of a block, whose outputs scale all others
OFFLOADS = ("none", "cpu")
QUANTISED = "its weights are quantised"  # why there is no fast path
OFFLOADED = "the world model's weights wait in CPU memory"  # the same
MERGE = (
    "The LoRA cannot be merged into quantised weights; load the model without quantization (on a CPU if it does not "
    "fit on the GPU), and merge it there."
)


def check_settings(
    quantization: str | BitsAndBytesConfig | None,
    offload: str = "none",
    device: torch.device | None = None,
    fast_path: str = "auto",
) -> None:
    """Raises a ValueError for an unknown setting, or one that is not possible on a device or with other settings."""
    check_fast_path(fast_path, device)
    check_quantization(quantization)
    check_offload(offload, quantization, device)
    reason = QUANTISED if quantization is not None else OFFLOADED if offload != "none" else None
    uses_fast_path("off" if fast_path == "auto" else fast_path, reason, pays=True)


def check_offload(
    offload: str, quantization: str | BitsAndBytesConfig | None = None, device: torch.device | None = None
) -> None:
    """Raises a ValueError for an unknown name, or where the world model cannot be offloaded."""
    if offload not in OFFLOADS:
        raise ValueError(f"world_model_offload is {offload!r}; choose one of {', '.join(OFFLOADS)}.")
    if offload == "none":
        return
    if quantization == "8bit" or (quantization and not isinstance(quantization, str) and quantization.load_in_8bit):
        raise ValueError(
            "world_model_offload is cpu and quantization is 8bit, whose weights bitsandbytes keeps on the GPU; use "
            "4bit, or leave one of them out."
        )
    if device is not None and device.type != "cuda":
        raise ValueError(f"world_model_offload is cpu, but the model is on {device}; leave it out.")


def check_quantization(quantization: str | BitsAndBytesConfig | None) -> None:
    """Raises a ValueError for an unknown name, or if bitsandbytes is missing."""
    if quantization is None:
        return
    if isinstance(quantization, str) and quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; choose one of {', '.join(QUANTIZATIONS)}.")
    if importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            f"quantization needs {PACKAGE}, which is not installed; install it with `uv pip install --python "
            f"{shlex.quote(sys.executable)} {PACKAGE}`, or with pip."
        )


def bitsandbytes_config(quantization: str | BitsAndBytesConfig, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """transformers' settings for "4bit" or "8bit", computed with in `dtype`; others are returned as they are."""
    from transformers import BitsAndBytesConfig

    check_quantization(quantization)
    if quantization == "8bit" or (not isinstance(quantization, str) and quantization.load_in_8bit):
        # which would warn at each call of each layer that inputs are converted
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if not isinstance(quantization, str):
        return quantization
    compute = {"bnb_4bit_compute_dtype": dtype} if quantization == "4bit" and dtype is not None else {}
    return BitsAndBytesConfig(**QUANTIZATIONS[quantization], **compute)


def prepare_world_transformer(transformer: nn.Module, config: BitsAndBytesConfig) -> None:
    """Replaces the linear layers of a world transformer without storage that are quantised when they are read."""
    from transformers.integrations import replace_with_bnb_linear

    replace_with_bnb_linear(transformer.get_submodule(WORLD_BLOCKS), [WORLD_KEPT], config)
    use_unpacked_weights(transformer)


def use_unpacked_weights(model: nn.Module) -> None:
    """Leaves out bitsandbytes' kernels for CPUs with AVX-512 BF16.

    They compute in bfloat16 whatever the dtype of the model, and fail for widths that are no multiples of their blocks.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 an attribute of one kind of layer


def quantised_parameter(module: nn.Module, name: str, value: torch.Tensor) -> nn.Parameter | None:
    """`value` as the quantised parameter `name` of a module that `prepare_world_transformer` made, or None."""
    import bitsandbytes

    owner, _, last = name.rpartition(".")
    before = module.get_submodule(owner)._parameters.get(last)
    if not isinstance(before, bitsandbytes.nn.Params4bit | bitsandbytes.nn.Int8Params):
        return None
    kind, settings = type(before), vars(before).copy()
    if kind is bitsandbytes.nn.Int8Params:  # which is quantised on its way to another device
        settings.pop("SCB", None)
        settings.pop("CB", None)
    return kind(value, requires_grad=False, **settings).to(value.device)


def is_quantised(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds quantised weights: only those of bitsandbytes are integers here."""
    return not parameter.is_floating_point()


def num_weights(parameter: torch.Tensor) -> int:
    """The number of weights that a parameter holds; one of 4 bits packs two in a byte."""
    if type(parameter).__name__ == "Params4bit":
        return int(parameter.quant_state.shape.numel())  # type: ignore[attr-defined]
    return parameter.numel()


def quantised_layers(model: nn.Module) -> Iterator[str]:
    """Names of the weights of a complete model that a quantised one holds in 4 or 8 bits."""
    from torch import nn

    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        in_gemma = name.startswith(("vlm.model.language_model.layers.", "vlm.model.vision_tower."))
        block = name.partition(f"world.transformer.{WORLD_BLOCKS}.")[2]
        if in_gemma or (block and not re.match(WORLD_KEPT, block)):
            yield f"{name}.weight"
