"""What fits on cards of 12, 16 and 24 GB: the first setting of a few whose predicted memory does.

A quantised model needs the memory that `theworld.inspection.memory` predicts for a smaller one: `stored_counts` counts
a quantised weight as the share of a weight of `b` bytes that it takes. A card of X GB leaves X·10^9 bytes to torch.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from theworld.inspection import memory
from theworld.inspection.memory import Prediction
from theworld.inspection.run_memory import training_run
from theworld.model import freezing
from theworld.model.call_plan import world_parts_for
from theworld.model.configuration import TheWorldConfig
from theworld.model.lora_settings import lora_settings
from theworld.quantization import BYTES, quantised_layers

CARDS = (12, 16, 24)  # GB
MARGIN = 1.05  # of an allocator, over the bytes that are asked of it
WORLD_STEPS = 4
RANK = 16  # of the LoRA that is predicted, if the model has none
# what a user can set, from the least intrusive: (name, quantization, offload or checkpointing)
Setting = tuple[str, str | None, bool]
ANSWERING: tuple[Setting, ...] = (
    ("plain", None, False),
    ("offload", None, True),
    ("8bit", "8bit", False),
    ("4bit", "4bit", False),
    ("4bit + offload", "4bit", True),
)
TRAINING: tuple[Setting, ...] = (
    ("plain", None, False),
    ("checkpointing", None, True),
    ("8bit", "8bit", False),
    ("4bit", "4bit", False),
    ("4bit + checkpointing", "4bit", True),
)


def quantised_counts(model: nn.Module) -> dict[str, int]:
    """The weights of each part of a complete model that quantization changes."""
    sizes = dict(model.named_parameters())
    totals = Counter[str]()
    for name in quantised_layers(model):
        totals[freezing.part_of(name)] += sizes[name].numel()
    return dict(totals)


def stored_counts(
    counts: Mapping[str, int], quantised: Mapping[str, int], quantization: str | None, b: int = 2
) -> dict[str, int]:
    """`counts` with quantised weights as the share of a weight of b bytes that they take."""
    share = 1.0 if quantization is None else BYTES[quantization] / b
    return {part: count - round(quantised.get(part, 0) * (1 - share)) for part, count in counts.items()}


def answering(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    quantised: Mapping[str, int],
    *,
    num_world_steps: int,
    quantization: str | None = None,
    offload: bool = False,
    b: int = 2,
) -> Prediction:
    """Memory of answering one question about one image with the model in these settings, in mode `tokens`."""
    stored = stored_counts(counts, quantised, quantization, b)
    parts = world_parts_for(num_world_steps) if config.enable_world else ()
    kept = [part for part in parts if not (offload and part == "transformer")]
    found = memory.inference(config, stored, num_world_steps=num_world_steps, b=b, world_parts=kept)
    if offload and "transformer" in parts:  # two blocks are on the card at once
        block = b * stored["world_transformer"] // config.world_config.transformer.get("num_layers", 28)
        found = replace(found, transient={**found.transient, "rollout": found.transient["rollout"] + 2 * block})
    return with_copies(found, config, quantization, b)


def training(
    config: TheWorldConfig,
    counts: Mapping[str, int],
    quantised: Mapping[str, int],
    trained: tuple[str, ...],
    *,
    num_world_steps: int = 0,
    quantization: str | None = None,
    checkpointing: bool = False,
    b: int = 2,
) -> Prediction:
    """Memory of a step of `theworld train` with one sample."""
    stored = stored_counts(counts, quantised, quantization, b)
    found = training_run(config, stored, trained, num_world_steps=num_world_steps, checkpointing=checkpointing, b=b)
    return with_copies(found, config, quantization, b)


def with_copies(found: Prediction, config: TheWorldConfig, quantization: str | None, b: int) -> Prediction:
    """Adds the largest layer's weights, which are converted to b bytes each while it computes: those of an MLP."""
    if quantization is None:
        return found
    text = config.get_text_config()
    return replace(found, persistent={**found.persistent, "one layer": b * text.hidden_size * text.intermediate_size})


def what_fits(
    config: TheWorldConfig, counts: Mapping[str, int], quantised: Mapping[str, int], b: int = 2
) -> list[dict[str, Any]]:
    """For each use: `use`, `peaks` in bytes by setting, and `fits`: the first setting that fits on each card, or None.

    A LoRA of rank 16 on all linear layers is assumed if the model has none.
    """
    rows = []
    steps = [0, min(WORLD_STEPS, config.max_world_steps)] if config.enable_world else [0]
    for N in dict.fromkeys(steps):
        peaks = {
            name: answering(config, counts, quantised, num_world_steps=N, quantization=bits, offload=offload, b=b).peak
            for name, bits, offload in ANSWERING
            if N or not offload  # without a rollout the transformer is not loaded
        }
        rows.append(as_row(f"answer, {N} world steps", peaks))
    for use, trained in (("train the projector", ("projector",)), ("train a LoRA", ("projector", "lora"))):
        if not config.enable_world and trained == ("projector",):
            continue
        one, sizes = (config, dict(counts)) if "lora" not in trained else with_lora(config, counts)
        peaks = {
            name: training(one, sizes, quantised, trained, quantization=bits, checkpointing=checkpointing, b=b).peak
            for name, bits, checkpointing in TRAINING
        }
        rows.append(as_row(f"{use}, 1 sample", peaks))
    return rows


def as_row(use: str, peaks: Mapping[str, int]) -> dict[str, Any]:
    def first(card: int) -> str | None:
        return next((name for name, peak in peaks.items() if peak * MARGIN <= card * 10**9), None)

    return {"use": use, "peaks": dict(peaks), "fits": {card: first(card) for card in CARDS}}


def with_lora(config: TheWorldConfig, counts: Mapping[str, int]) -> tuple[TheWorldConfig, dict[str, int]]:
    """The config and counts with a LoRA, of rank 16 on all linear layers if there is none."""
    if config.lora is not None:
        return config, dict(counts)
    config = copy.deepcopy(config)
    config.lora = lora_settings(RANK)
    text = config.get_text_config()
    D, F, head = text.hidden_size, text.intermediate_size, text.head_dim
    Q, K = text.num_attention_heads * head, text.num_key_value_heads * head
    widths = 2 * (D + Q) + 2 * (D + K) + 3 * (D + F)  # inputs and outputs of the seven layers
    return config, {**counts, "lora": RANK * widths * text.num_hidden_layers}
