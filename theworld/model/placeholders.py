"""Placeholders in a prompt: features replace their embeddings, in order."""

from __future__ import annotations

from torch import Tensor

IGNORE_INDEX = -100  # label of a token that the loss ignores


def scatter(embeds_BLD: Tensor, placeholders_BL: Tensor, features: Tensor, kind: str) -> Tensor:
    """Replaces the placeholders by `features` (images, tokens, D), in order; a ValueError if their numbers differ."""
    check_number(int(placeholders_BL.sum()), features.shape[0] * features.shape[1], kind)
    return embeds_BLD.masked_scatter(placeholders_BL.unsqueeze(-1), features.to(embeds_BLD))


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
