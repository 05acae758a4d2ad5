"""Placeholders in a prompt: features replace their embeddings, in order."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that the loss ignores


def find_placeholders(input_ids_BL: Tensor, *token_ids: int) -> list[Tensor]:
    """Places (n,) int64 in B·L of the placeholders of each id, with one transfer from the device."""
    masks = [input_ids_BL.flatten() == token_id for token_id in token_ids]
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    return [torch.nonzero_static(mask, size=count)[:, 0] for mask, count in zip(masks, counts, strict=True)]


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
