"""Positions in a prompt: runs of placeholders, and the embeddings that Gemma's layers receive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theworld import TheWorld


def kinds_of(model: TheWorld, ids: Tensor) -> str:
    """A prompt as one letter per run of tokens: p for an image's soft tokens, w for world tokens, . for others."""
    soft, world = model.model.vlm.config.image_token_id, model.config.world_token_id
    letters = ["p" if token == soft else "w" if token == world else "." for token in ids.tolist()]
    return "".join(letter for letter, before in zip(letters, ["", *letters[:-1]], strict=True) if letter != before)


def embeds_of(model: TheWorld, **inputs: Any) -> Tensor:
    """The embeddings (B, L, D) that Gemma's layers receive: text, images and world tokens."""
    caught: list[Tensor] = []
    hook = model.model.vlm.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model.model(**inputs)
    hook.remove()
    return caught[0]


def runs_of(row: Tensor, token: int) -> list[list[int]]:
    """The positions of each contiguous run of `token`."""
    positions = (row == token).nonzero().flatten().tolist()
    starts = [i for i, position in enumerate(positions) if i == 0 or position != positions[i - 1] + 1]
    return [positions[start:end] for start, end in zip(starts, [*starts[1:], len(positions)], strict=True)]
