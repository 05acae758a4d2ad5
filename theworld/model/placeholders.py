"""Placeholders in a prompt: features replace their embeddings, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theworld.model.devices import to_device

IGNORE_INDEX = -100  # label of a token that the loss ignores


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, (B, L): ids, and what `TheWorldForConditionalGeneration.forward` is given about them.

    On the CPU, they can be read without waiting for the GPU.
    """

    input_ids: Tensor
    attention_mask: Any = None
    token_type_ids: Tensor | None = None
    labels: Tensor | None = None


def find_placeholders(input_ids_BL: Tensor, device: torch.device, *token_ids: int) -> list[Tensor]:
    """Places (n,) int64 in B·L of the placeholders of each id, on `device`.

    If the ids are on a GPU, the host waits for it.
    """
    flat = input_ids_BL.flatten()
    return to_device([(flat == token_id).nonzero()[:, 0] for token_id in token_ids], device)


def scatter(embeds_BLD: Tensor, places: Tensor, features: Tensor, kind: str) -> Tensor:
    """Replaces the embeddings at `places` (n,) of B·L by `features` (images, tokens, D); a ValueError if n differs."""
    check_number(len(places), features.shape[0] * features.shape[1], kind)
    # neither this nor its gradient waits for the device, as masked_scatter would
    return embeds_BLD.flatten(0, 1).index_copy(0, places, features.flatten(0, 1).to(embeds_BLD)).view_as(embeds_BLD)


def check_number(expected: int, given: int, kind: str) -> None:
    """A ValueError if there are not as many tokens given as a prompt has placeholders of this kind."""
    if expected != given:
        raise ValueError(
            f"The prompt has {expected} {kind} placeholders, but there are {given} {kind} tokens. Build prompt and "
            f"inputs with the same images, num_world_steps, world_image_size and spatial_merge."
        )


def single_value(value: Tensor | int | None, default: int, name: str) -> int:
    """The number of steps that all rows of a batch share; a ValueError if they differ."""
    if value is None:
        return default
    if isinstance(value, int):
        return value
    numbers = sorted(set(value.flatten().tolist()))
    if len(numbers) != 1:
        raise ValueError(f"All samples of a batch need the same {name}, got {numbers}; group your samples by it.")
    return int(numbers[0])
