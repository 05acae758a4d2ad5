"""The settings of a LoRA: which of peft's fields are accepted, and their defaults."""

from __future__ import annotations

from typing import Any

LORA_FIELDS = (  # of peft's LoraConfig: those that add A and B matrices and leave every other weight as it is
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
)


def lora_settings(lora: dict[str, Any] | int | None) -> dict[str, Any] | None:
    """A LoRA's full settings out of its rank, or of some of them: alpha twice the rank, on all linear layers."""
    if lora is None:
        return None
    given = dict(lora) if isinstance(lora, dict) else {"r": lora}
    unknown = sorted(given.keys() - set(LORA_FIELDS))
    if unknown:
        raise ValueError(f"lora has a key {unknown[0]!r}; known are {', '.join(LORA_FIELDS)}.")
    rank = given.get("r", 16)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"the rank of lora is {rank!r}; give a whole number, 1 or more.")
    if not isinstance(given.get("init_lora_weights", True), bool):
        raise ValueError("init_lora_weights of lora must be true or false; other ways change the base's weights.")
    return {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", **given}
