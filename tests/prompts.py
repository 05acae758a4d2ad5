"""What lies where in a prompt: runs of placeholders, and what Gemma's layers are given in their places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theworld import TheWorld


def kinds_of(model: TheWorld, ids: Tensor) -> str:
    """A prompt as one letter a run of tokens: p for a picture's soft tokens, w for world tokens, . for the rest."""
    soft, world = model.model.vlm.config.image_token_id, model.config.world_token_id
    letters = ["p" if token == soft else "w" if token == world else "." for token in ids.tolist()]
    return "".join(letter for letter, before in zip(letters, ["", *letters[:-1]], strict=True) if letter != before)


def embeds_of(model: TheWorld, **inputs: Any) -> Tensor:
    """What Gemma's layers are given, (B, L, D): text, pictures and world tokens in their places."""
    caught: list[Tensor] = []
    hook = model.model.vlm.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model.model(**inputs)
    hook.remove()
    return caught[0]


def runs_of(row: Tensor, token: int) -> list[list[int]]:
    """The places of each unbroken run of `token`."""
    places = (row == token).nonzero().flatten().tolist()
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    return [places[start:end] for start, end in zip(starts, [*starts[1:], len(places)], strict=True)]
