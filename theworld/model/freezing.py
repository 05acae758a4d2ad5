"""Which parts of the model learn: an allow-list of parts, and the table that says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

# A part is named by where its parameters live. The first match wins: LoRA stands before the language model it sits in.
PARTS: dict[str, tuple[str, ...]] = {
    "projector": ("projector.",),
    "lora": (".lora_A.", ".lora_B."),
    "vision": ("vlm.model.vision_tower.", "vlm.model.multi_modal_projector."),
    "language": ("vlm.model.language_model.", "vlm.lm_head."),
    "vae_encoder": ("world.vae.encoder.", "world.vae.quant_conv."),
    "vae_decoder": ("world.vae.decoder.", "world.vae.post_quant_conv."),
    "world_transformer": ("world.transformer.",),
}
BETWEEN_BASES = ("projector", "lora")  # parts that neither base model has
TRAINABLE_PARTS = ("projector", "lora", "vision", "language", "vae_encoder")


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part: how many there are and how many of them learn."""

    part: str
    total: int
    trainable: int


def part_of(name: str) -> str:
    """The part a parameter belongs to, by its full name; an unknown name is our own defect."""
    for part, places in PARTS.items():
        for place in places:
            if name.startswith(place) or (place.startswith(".") and place in name):
                return part
    raise AssertionError(f"parameter {name} belongs to no part")


def parameters_of(model: nn.Module, parts: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Named parameters of the given parts; tied ones once."""
    wanted = set(parts)
    for name, parameter in model.named_parameters():
        if part_of(name) in wanted:
            yield name, parameter


def train_only(model: nn.Module, parts: Iterable[str]) -> None:
    """Makes exactly these parts learn and freezes all others.

    Raises:
        ValueError: a part that does not exist, cannot learn, or is not in this model.
    """
    wanted = tuple(dict.fromkeys(parts))
    for part in wanted:
        if part not in TRAINABLE_PARTS:
            raise ValueError(f"{part!r} cannot be trained; choose among {', '.join(TRAINABLE_PARTS)}.")
    present = {part_of(name) for name, _ in model.named_parameters()}
    for part in wanted:
        if part not in present:
            raise ValueError(f"this model has no {part!r} part to train; it has {', '.join(sorted(present))}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)


def trained_parts(model: nn.Module) -> tuple[str, ...]:
    """Parts with at least one parameter that learns, in the order of PARTS."""
    learning = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return tuple(part for part in PARTS if part in learning)


def count_parameters(model: nn.Module) -> list[PartCount]:
    """One row a part that the model has; works on the meta device."""
    totals: dict[str, int] = {}
    learning: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        totals[part] = totals.get(part, 0) + parameter.numel()
        learning[part] = learning.get(part, 0) + (parameter.numel() if parameter.requires_grad else 0)
    return [PartCount(part, totals[part], learning[part]) for part in PARTS if part in totals]
